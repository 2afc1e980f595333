"""Texts under a constraint, written token by token without a model."""

import json
import random

from whence_server.constraints.compiler import ConstraintCompiler, Matcher
from whence_server.domain.constraints import Constraint, GrammarSyntax, Language

SPECIAL = 256
"""Id of the one token that adds no text."""
VOCABULARY = [
    *(bytes([byte]) for byte in range(256)),
    b"",
    *(b'{"', b'": ', b'", "', b'"}', b"}]", b'"name', b"age", b'":"', b"true", b"false", b"null"),
    *(b" the", "é".encode(), "日".encode()[:2], b"[[", b"12", b"-1", b"0.", b", "),
]
"""Each byte, a special token, and longer tokens that cross the parts of a JSON text."""


def make_compiler() -> ConstraintCompiler:
    return ConstraintCompiler(VOCABULARY, {})


def json_schema(schema: object) -> Constraint:
    return Constraint(Language.JSON_SCHEMA, json.dumps(schema))


def regex(text: str) -> Constraint:
    return Constraint(Language.REGEX, text)


def grammar(text: str, syntax: GrammarSyntax = GrammarSyntax.LARK) -> Constraint:
    return Constraint(Language.GRAMMAR, text, syntax)


def accepts(compiled: Matcher, text: str) -> bool:
    """Return whether the text can be written byte by byte, and is then complete."""
    state = compiled.copy()
    for byte in text.encode():
        if not state.compute_mask()[byte]:
            return False
        state.advance([byte])
    return state.is_complete


def write_at_random(compiled: Matcher, seed: int, max_tokens: int = 300) -> tuple[bytes, bool]:
    """Return a text of tokens drawn evenly from those that remain, and whether it is complete."""
    choose = random.Random(seed)
    state, text = compiled.copy(), b""
    for _ in range(max_tokens):
        allowed = [int(token_id) for token_id in state.compute_mask().nonzero()[0]]
        if state.is_complete and (not allowed or choose.random() < 0.3):
            return text, True
        assert allowed, text
        # Quotes and brackets end a part: without a weight, strings would never end.
        ending = [token_id for token_id in allowed if VOCABULARY[token_id] in {b'"', b"]", b"}"}]
        if ending and choose.random() < 0.4:
            allowed = ending
        token_id = choose.choice(allowed)
        state.advance([token_id])
        text += VOCABULARY[token_id]
    return text, state.is_complete
