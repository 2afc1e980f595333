"""Constraints by themselves: what is refused, where, and that what remains is the language."""

import json
import re

import pytest
from constraint_texts import (
    SPECIAL,
    VOCABULARY,
    accepts,
    grammar,
    json_schema,
    make_compiler,
    regex,
    write_at_random,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schema_kinds import KINDS, REFUSED

from whence_server.constraints.errors import ConstraintError
from whence_server.domain.constraints import Constraint, GrammarSyntax, Language

COMPILER = make_compiler()
COMPILED = {name: COMPILER.compile(json_schema(kind.schema)) for name, kind in KINDS.items()}
VALIDATORS = {
    name: Draft202012Validator(kind.schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for name, kind in KINDS.items()
}


def refuse(constraint: Constraint) -> str:
    with pytest.raises(ConstraintError) as raised:
        COMPILER.compile(constraint)
    return raised.value.message


@pytest.mark.parametrize("name", KINDS)
def test_a_schema_allows_what_jsonschema_allows(name: str) -> None:
    kind = KINDS[name]
    compiled = COMPILED[name]
    examples = [(value, True) for value in kind.allowed] + [(v, False) for v in kind.refused]
    for value, wanted in examples:
        valid = VALIDATORS[name].is_valid(value)
        assert valid == wanted, "the example is wrong"
        # As models write: with spaces or on lines, and without escapes of printable characters.
        for indent in (None, 1):
            text = json.dumps(value, ensure_ascii=False, indent=indent)
            assert accepts(compiled, text) == valid, text


@given(
    name=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 10**6),
    max_tokens=st.sampled_from([3, 10, 300]),
)
@settings(max_examples=400, deadline=None)
def test_what_is_drawn_at_random_validates_or_is_said_to_be_cut(
    name: str, seed: int, max_tokens: int
) -> None:
    compiled = COMPILED[name]
    text, complete = write_at_random(compiled, seed, max_tokens)
    assert _satisfies(name, text) == complete, text


def _satisfies(name: str, text: bytes) -> bool:
    try:
        return VALIDATORS[name].is_valid(json.loads(text))
    except ValueError:
        return False


@pytest.mark.parametrize("pointer", REFUSED)
def test_a_keyword_that_is_not_enforced_is_refused_with_its_place(pointer: str) -> None:
    message = refuse(json_schema(REFUSED[pointer]))
    assert f"{pointer}:" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "object",}', r"is no JSON: .* at line 1, column 1[89]"),
        ('{\n"type": }', r"is no JSON: .* at line 2, column 9"),
        ('{"a": 1, "a": 2}', "names the key 'a' twice"),
        ('{"minimum": NaN}', "NaN is no number of JSON"),
        ("[1]", "must be a schema, an object, and not a list"),
        ("false", "must be a schema, an object, and not false"),
        ('{"type": "strin"}', "cannot be enforced: Invalid type: strin"),
        ('{"$ref": "#/$defs/a"}', r"cannot be enforced: .*/\$defs/a"),
        ('{"pattern": "(a", "type": "string"}', "unclosed group at character 1 of '[(]a'"),
        ('{"enum": []}', "cannot be enforced: Unsatisfiable schema"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"const": ' + "[" * 900 + "]" * 900 + "}", "is nested too deeply|recursion limit"),
        ('{"minimum": ' + "9" * 5000 + "}", "is no JSON that can be read"),
        ('{"minimum": 1e400}', "cannot be enforced"),
        (
            json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(1500)}}),
            "takes too much work for one token: Current row has [0-9]+ items",
        ),
    ],
)
def test_a_wrong_schema_is_refused_with_the_position(text: str, message: str) -> None:
    assert re.search(message, refuse(Constraint(Language.JSON_SCHEMA, text)))


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (regex("ab(c"), r"is no regular expression: unclosed group at character 3 of 'ab\(c'"),
        (regex("a/b/["), "is no regular expression: unclosed character class at character 5"),
        (regex(r"a(?=b)"), "look-around, .* is not supported at character 2"),
        (regex(r"\1"), "backreferences are not supported at character 1"),
        (grammar('start: "a"\n  | foo'), 'is no grammar: unknown name: "foo" at line 1, column 8'),
        (grammar('start: "a" ('), "is no grammar: .* at line 1, column 13"),
        (grammar('begin: "a"'), "is no grammar: no start rule found"),
        (grammar("start: <|end|>"), "is no grammar: unknown special token"),
        (grammar('start: x\nx: x "a"'), "allows no text"),
        (grammar('root ::= "a" (', GrammarSyntax.EBNF), r"is no EBNF .* at line 1"),
        (grammar('root ::= "a" b', GrammarSyntax.EBNF), "is no EBNF .*'b' not found"),
        (grammar('start: "a"', GrammarSyntax.EBNF), "is no EBNF .* at line 1"),
    ],
)
def test_a_wrong_regex_or_grammar_is_refused_with_the_position(
    constraint: Constraint, message: str
) -> None:
    assert re.search(message, refuse(constraint))


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("(cat|car|dog)s?", ["cat", "cars", "dog", "do", "catss", "xcat"]),
        ("^a+$", ["a", "aaa", "", "ba"]),
        ("a/b|é", ["a/b", "é", "a", "e"]),
        (r"a\\/b\n", ["a\\/b\n", "a/b\n"]),
        (r"x\/y", ["x/y", "x\\/y"]),
        (r"\d{2}", ["12", "1", "1a"]),
    ],
)
def test_a_regex_matches_the_whole_text_as_in_python(pattern: str, texts: list[str]) -> None:
    compiled = COMPILER.compile(regex(pattern))
    for text in texts:
        assert accepts(compiled, text) == bool(re.fullmatch(pattern, text)), text


def test_a_grammar_in_both_syntaxes_allows_the_same() -> None:
    lark = grammar('start: "(" start ")" | /[0-9]+/')
    ebnf = grammar('root ::= "(" root ")" | [0-9]+', GrammarSyntax.EBNF)
    both = [COMPILER.compile(constraint) for constraint in (lark, ebnf)]
    for text in ("7", "((42))", "((42)", "()", "(4))"):
        balanced = re.fullmatch(r"(\(*)\d+(\)*)", text)
        wanted = balanced is not None and len(balanced[1]) == len(balanced[2])
        assert [accepts(compiled, text) for compiled in both] == [wanted, wanted], text


def test_a_token_remains_if_and_only_if_the_text_can_be_completed() -> None:
    words = [b"the", b" the", b"age12", b"null", b"12-1", b"\xc3\xa9t"]
    pattern = "|".join(word.decode() for word in words)
    compiled = COMPILER.compile(regex(pattern))
    begins = {word[:end] for word in words for end in range(len(word) + 1)}
    for begin in begins:
        state = compiled.copy()
        state.advance(list(begin))
        wanted = [
            bool(token) and any(word.startswith(begin + token) for word in words)
            for token in VOCABULARY
        ]
        assert state.compute_mask().tolist() == wanted, begin
        assert state.is_complete == (begin in words)


def test_a_token_without_text_never_remains() -> None:
    compiled = COMPILER.compile(regex(".*"))
    assert not compiled.compute_mask()[SPECIAL]


def test_states_go_on_independently() -> None:
    compiled = COMPILER.compile(regex("ab|ac"))
    first, second = compiled.copy(), compiled.copy()
    first.advance(list(b"ab"))
    second.advance(list(b"a"))
    assert (first.is_complete, second.is_complete, compiled.is_complete) == (True, False, False)
    assert second.compute_mask().nonzero()[0].tolist() == [ord("b"), ord("c")]


def test_a_token_that_the_language_does_not_allow_is_an_error_and_stays_one() -> None:
    state = COMPILER.compile(regex("ab")).copy()
    with pytest.raises(ConstraintError, match="does not allow"):
        state.advance(list(b"x"))
    with pytest.raises(ConstraintError):
        state.compute_mask()


def test_whitespace_in_a_json_text_is_bounded() -> None:
    compiled = COMPILER.compile(json_schema({"type": "array"}))
    assert accepts(compiled, "[" + " " * 64 + "]")
    assert not accepts(compiled, "[" + " " * 65 + "]")


def test_tokens_that_end_a_sequence_are_those_without_text() -> None:
    compiled = COMPILER.compile(regex("a"))
    beyond = len(VOCABULARY)
    assert compiled.select_ends([ord("a"), beyond], [SPECIAL, ord("b"), beyond]) == {
        ord("a"),
        SPECIAL,
    }
