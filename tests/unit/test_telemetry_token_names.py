"""Names of tokens are made ahead of the steps that need them, in turns of the event loop."""

from collections.abc import Sequence

import pytest

from whence_server.telemetry.spans import token_names
from whence_server.telemetry.spans.token_names import NameBook

NUM_TOKENS = 3_000


class Tokens(Sequence[bytes]):
    """Tokens of a vocabulary, and the ids that were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return NUM_TOKENS

    def __getitem__(self, token_id):
        self.asked.append(token_id)
        return b" t%d" % token_id


class Kept:
    """Vocabularies that have one."""

    def __init__(self) -> None:
        self.tokens = Tokens()

    async def find(self, _tokenizer_digest: str, _position: int) -> "Kept":
        return self


def test_names_are_made_before_they_are_needed_and_few_in_a_turn() -> None:
    kept = Kept()
    finding, turns = NameBook(kept).find("digest", 1), []
    while True:
        before = len(kept.tokens.asked)
        try:
            finding.send(None)
        except StopIteration as end:
            words = end.value
            break
        turns.append(len(kept.tokens.asked) - before)
    assert kept.tokens.asked == [*range(NUM_TOKENS)]
    assert max(turns) <= 1_024
    assert [words.names(token_id) for token_id in (0, 2_999)] == ['" t0"', '" t2999"']
    assert len(kept.tokens.asked) == NUM_TOKENS, "they are looked up"


async def test_no_more_names_are_made_ahead_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_names, "MAX_CACHED_NAMES", 100)
    kept = Kept()
    words = await NameBook(kept).find("digest", 1)
    assert kept.tokens.asked == [*range(100)]
    assert words.names(2_000) == '" t2000"'


async def test_the_names_of_a_vocabulary_are_made_once() -> None:
    kept = Kept()
    book = NameBook(kept)
    assert await book.find("digest", 1) is await book.find("digest", 2)
    assert len(kept.tokens.asked) == NUM_TOKENS
