"""The place where two generations of one request part."""

from whence import Token
from whence.generation import TokenReader
from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.demo.parting import find_parting, format_parting

TEXTS = {1: "The", 2: " sea", 3: " sky"}


def read(*token_ids: int) -> list[Token]:
    reader = TokenReader(GenerationStarted(), lambda model, digest, token_id: TEXTS[token_id])
    steps = [
        Step(index=index, token_id=token_id, text=TEXTS[token_id], logprob=-1.0)
        for index, token_id in enumerate(token_ids)
    ]
    return list(reader.read(steps))


def test_sequences_part_at_the_first_token_that_differs() -> None:
    assert find_parting(read(1, 2, 1), read(1, 3, 1)) == 1
    assert find_parting(read(1, 2), read(1, 2, 3)) is None


def test_a_parting_shows_what_was_common_and_both_choices() -> None:
    lines = list(format_parting(read(1, 2), read(1, 3), ("seed 2", "seed 13")))
    assert lines == [
        'Both begin with the same 1 token, "The", and then part:',
        '  seed 2   " sea" 36.8%',
        '  seed 13  " sky" 36.8%',
    ]


def test_sequences_that_part_at_once_or_never_are_said_to() -> None:
    names = ("seed 2", "seed 13")
    assert next(format_parting(read(1), read(2), names)) == "They part at the first token:"
    assert list(format_parting(read(1), read(1), names)) == ["Both draw the same tokens."]
