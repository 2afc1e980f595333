"""Constraints with tokenizers of every family: the decoded output is what the language allows."""

import random
import re
from functools import cache

import pytest
from constraint_texts import regex
from text_oracles import FAMILIES, PADDING
from tokenizers import Tokenizer

from whence_server.constraints.compiler import ConstraintCompiler
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.model import TextFiles
from whence_server.text.tokenizer import TextEncoder
from whence_server.vocabulary import read_text_bytes

PATTERNS = ["[a-zé]+( [a-zé]+)*", "(the|quick|fox)(s|ing)?", " ?[a-z ]+é?"]


@cache
def load(family: str) -> tuple[Tokenizer, ConstraintCompiler]:
    tokenizer = FAMILIES[family]()
    size = tokenizer.get_vocab_size() + PADDING
    return tokenizer, ConstraintCompiler(*read_text_bytes(tokenizer, size))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"end_of_word"}))
def test_an_output_satisfies_the_constraint(family: str, pattern: str) -> None:
    tokenizer, compiler = load(family)
    compiled = compiler.compile(regex(pattern))
    num_complete = 0
    for seed in range(40):
        choose, state, ids = random.Random(seed), compiled.copy(), []
        for _ in range(12):
            allowed = state.compute_mask().nonzero()[0].tolist()
            if not allowed or (state.is_complete and choose.random() < 0.3):
                break
            ids.append(choose.choice(allowed))
            state.advance(ids[-1:])
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if state.is_complete:
            num_complete += 1
            assert re.fullmatch(pattern, text), (ids, text)
    assert num_complete > 5


def test_a_tokenizer_whose_tokens_depend_on_the_next_is_refused() -> None:
    files = TextFiles(load("end_of_word")[0].to_str(), None, {})
    with pytest.raises(InvalidRequestError, match="decodes a token by what follows"):
        TextEncoder(files).check_constraint(regex("a"), 300)


def test_a_wrong_constraint_is_recorded_without_its_text() -> None:
    files = TextFiles(load("byte_level")[0].to_str(), None, {})
    with pytest.raises(InvalidRequestError, match="SECRET") as raised:
        TextEncoder(files).check_constraint(regex("(SECRET"), 400)
    assert "SECRET" not in raised.value.without_content().message
