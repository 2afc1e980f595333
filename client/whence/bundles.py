"""Requests of bundles and of signing keys, without I/O."""

from collections.abc import Collection

from whence.arguments import require_text
from whence.backoff import RetryPolicy
from whence.once import OneCallStream
from whence.v1 import proof_pb2

HIDEABLE = ("prompt", "text")
"""Parts of a generation that a bundle can hide."""


def make_bundle_stream(
    generation_id: str,
    hide: Collection[str],
    steps: range | None,
    policy: RetryPolicy,
    *,
    known_log_size: int = 0,
) -> OneCallStream[bytes]:
    """Return the stream of a bundle's pieces.

    Args:
        generation_id: id of the generation.
        hide: parts to hide, of `HIDEABLE`.
        steps: indexes of the only steps to show; None for all of them.
        policy: bounds of the wait for a server that starts.
        known_log_size: number of entries of an earlier transparency log; 0 for none.

    Raises:
        TypeError: the id is no text.
        ValueError: an unknown part, or a range with another step than 1 or a negative begin.
    """
    if unknown := sorted(set(hide) - set(HIDEABLE)):
        raise ValueError(f"hide: {unknown[0]!r} is unknown; expected {', '.join(HIDEABLE)}")
    request = proof_pb2.ExportBundleRequest(
        generation_id=require_text("generation_id", generation_id),
        hide_prompt="prompt" in hide,
        hide_text="text" in hide,
        known_log_size=known_log_size,
    )
    if steps is not None:
        if steps.step != 1 or steps.start < 0:
            raise ValueError("steps: expected a range from 0 or above, with the step 1")
        request.steps.begin, request.steps.end = steps.start, steps.stop
    return OneCallStream(
        request, proof_pb2.ExportBundleResponse, lambda response: response.data or None, policy
    )
