"""Content policy of a record: what is absent from it by policy, and not by chance."""

from whence.v1.generation_pb2 import ContentPolicy, GenerationStarted

_NAMES = {
    ContentPolicy.CONTENT_POLICY_TOKENS: "tokens",
    ContentPolicy.CONTENT_POLICY_NONE: "none",
}
_MEANINGS = {
    "tokens": "token ids and numbers, no text (tokens)",
    "none": "numbers, no text and no token ids (none)",
}


CONTENT_POLICIES: dict[str | None, ContentPolicy.ValueType] = {
    None: ContentPolicy.CONTENT_POLICY_UNSPECIFIED,
    "full": ContentPolicy.CONTENT_POLICY_FULL,
    "tokens": ContentPolicy.CONTENT_POLICY_TOKENS,
    "none": ContentPolicy.CONTENT_POLICY_NONE,
}
"""Policies by the names that options give them; None is the server's."""


def describe_policy(started: GenerationStarted) -> str:
    """Return the name of a policy that leaves something out: "tokens" or "none"; "" for all."""
    return _NAMES.get(started.content, "")


def explain_policy(started: GenerationStarted) -> str:
    """Return what the record of a generation keeps of its content, in words; "" for all."""
    return _MEANINGS.get(describe_policy(started), "")
