"""Fields of a caller for the upstream's own API: where they go, and which contradict whence's."""

from collections.abc import Collection, Mapping
from typing import Any

from whence_server.domain.errors import FieldViolation, InvalidRequestError

_HOLDERS = ("options", "sampling_params")
"""Objects of a request that hold settings, as Ollama and SGLang have them."""


def divide(
    given: Mapping[str, Any], inner: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields that belong into the object of settings, and those beside it."""
    settings = {name: value for name, value in given.items() if name in inner}
    return settings, {name: value for name, value in given.items() if name not in inner}


def check_contradictions(
    given: Mapping[str, Any], own: Mapping[str, Any], neutral: Collection[str], title: str
) -> None:
    """Refuse fields that whence itself sends with another value, which would replace the caller's.

    Args:
        given: the caller's fields.
        own: body of the same request without them.
        neutral: fields that the caller may replace.
        title: the kind of upstream, for errors.

    Raises:
        InvalidRequestError: names each field.
    """
    sent = dict(own)
    for holder in _HOLDERS:
        if isinstance(own.get(holder), dict):
            sent |= own[holder]
    violations = [
        FieldViolation(
            name,
            f"is sent to the upstream ({title}) by whence itself, as {sent[name]!r:.80}; ask for "
            "it by whence's own option, or leave it out",
        )
        for name, value in given.items()
        if name in sent and name not in neutral and sent[name] != value
    ]
    if violations:
        raise InvalidRequestError(*violations)
