"""Shares of the recorders of each caller in the server's memory."""

from collections.abc import Collection, Iterable
from typing import Protocol

from whence_server.domain.errors import RecordersFullError
from whence_server.domain.recorded import (
    GRACE_S,
    MAX_OWNER_RECORDERS,
    MAX_OWNER_TOKENIZERS_BYTES,
    MAX_RECORDERS,
    MAX_TOKENIZERS_BYTES,
)
from whence_server.generation.recording.batches import ReadyModel
from whence_server.generation.recording.tokenizers import TokenizerParts

_RETRY_AFTER_S = 10.0


class Holder(Protocol):
    """Recorder, as far as shares concern it."""

    owner: str
    models: dict[int, ReadyModel]
    parts: TokenizerParts | None


def check_recorders(owners: Collection[str], owner: str) -> None:
    """Check that there is room for one more recorder.

    Args:
        owners: owner of each recorder that is connected or expected back.
        owner: id of the caller that connects.

    Raises:
        RecordersFullError: the caller has its share of recorders, or there are too many in all.
    """
    own = sum(name == owner for name in owners)
    # Without authentication all recorders are those of one caller, who may have every place.
    if owner and own >= MAX_OWNER_RECORDERS:
        whose, limit = "this caller has", MAX_OWNER_RECORDERS
    elif len(owners) >= MAX_RECORDERS:
        whose, limit = "there are", MAX_RECORDERS
    else:
        return
    raise RecordersFullError(
        f"{whose} {limit} recorders, the most there may be (each keeps its place for {GRACE_S:g} s "
        "after its connection ended); use one recorder for all models of a process",
        limit,
        _RETRY_AFTER_S,
    )


def check_tokenizers(holders: Iterable[Holder], owner: str, added: int) -> None:
    """Check that the tokenizers of recorders leave room for one more.

    Args:
        holders: all recorders.
        owner: id of the caller that sends the tokenizer.
        added: its size in bytes.

    Raises:
        RecordersFullError: they would take too many bytes.
    """
    holders = list(holders)
    total = added + _measure(holders)
    own = added + _measure([holder for holder in holders if holder.owner == owner])
    for whose, size, limit in (
        ("this caller's", own, MAX_OWNER_TOKENIZERS_BYTES),
        ("all", total, MAX_TOKENIZERS_BYTES),
    ):
        # Without authentication all recorders are those of one caller, who may have everything.
        if size > limit and (owner or whose == "all"):
            raise RecordersFullError(
                f"the tokenizers of {whose} recorders would take {size} bytes, and may take "
                f"{limit}; close recorders, or let models share a tokenizer",
                limit,
                _RETRY_AFTER_S,
            )


def _measure(holders: list[Holder]) -> int:
    """Return the bytes of tokenizers; one that several models share counts once."""
    held = {
        id(model.tokenizer): model.tokenizer_bytes
        for holder in holders
        for model in holder.models.values()
    }
    arriving = (holder.parts.num_bytes for holder in holders if holder.parts is not None)
    return sum(held.values()) + sum(arriving)
