"""Vocabularies that recorders send: bounded, and never in place of the served tokenizer's."""

from pathlib import Path

import pytest

from whence_server.domain.errors import VocabulariesFullError
from whence_server.journal.recorded_vocabularies import RecordedVocabularies
from whence_server.journal.vocabularies import MAX_POSITION, Vocabularies

FIRST, SECOND, THIRD = "a" * 64, "b" * 64, "c" * 64
TOKENS = [b"x" * 100] * 100


def open_keeper(folder: Path) -> RecordedVocabularies:
    return RecordedVocabularies(
        Vocabularies(folder), folder, max_bytes=40_000, max_owner_bytes=25_000
    )


async def read(folder: Path, digest: str) -> list[bytes] | None:
    kept = await Vocabularies(folder).find(digest, MAX_POSITION)
    return None if kept is None else list(kept.tokens)


async def test_callers_share_of_the_disk_is_bounded_also_after_a_restart(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    for digest in (FIRST, SECOND):
        keeper.keep(digest, TOKENS, 1, "alice")
    for again in (keeper, open_keeper(tmp_path)):
        again.keep(FIRST, TOKENS, 1, "alice")
        with pytest.raises(VocabulariesFullError, match="this caller's vocabularies would take"):
            again.keep(THIRD, TOKENS, 1, "alice")
    assert await read(tmp_path, THIRD) is None
    keeper.keep(THIRD, TOKENS, 1, "bob")
    assert await read(tmp_path, THIRD) == TOKENS


async def test_all_vocabularies_together_are_bounded(tmp_path: Path) -> None:
    keeper = open_keeper(tmp_path)
    for digest, owner in ((FIRST, "alice"), (SECOND, "bob"), (THIRD, "carol")):
        keeper.keep(digest, TOKENS, 1, owner)
    with pytest.raises(VocabulariesFullError, match="all recorders' vocabularies would take"):
        keeper.keep("d" * 64, TOKENS, 1, "dave")


async def test_vocabulary_of_a_served_tokenizer_is_never_replaced(tmp_path: Path) -> None:
    own, sent = [b"own"], [b"sent", b"longer"]
    Vocabularies(tmp_path).keep(FIRST, own, 1)
    open_keeper(tmp_path).keep(FIRST, sent, 2, "alice")
    assert await read(tmp_path, FIRST) == own


async def test_served_tokenizer_takes_the_place_of_a_sent_vocabulary(tmp_path: Path) -> None:
    open_keeper(tmp_path).keep(FIRST, [b"sent"], 1, "alice")
    Vocabularies(tmp_path).keep(FIRST, [b"own"], 2)
    assert await read(tmp_path, FIRST) == [b"own"]
