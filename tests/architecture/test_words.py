"""The style page of CONTRIBUTING.md, as far as a program can hold code to it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder in ("server/whence_server", "client/whence", "client/whence_hooks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "v1" not in path.parts
)
DIALECT = re.compile(
    r"(What|Whether|How|Which|Of|Whoever|Who|Whose|Where|When|Why|As|By|For|From|In)\b"
)
BEGINNING = re.compile(f"[\"']{DIALECT.pattern}")


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in node.body:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def test_no_docstring_begins_with_a_word_that_names_nothing() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {text.splitlines()[0]}"
        for path in SOURCES
        # Parsing everything takes seconds.
        if BEGINNING.search(source := path.read_text(encoding="utf-8"))
        for line, text in docstrings(ast.parse(source))
        # "In-memory" is a noun phrase.
        if DIALECT.match(text) and not text.startswith("In-")
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "is_dialect"),
    [
        ("What a server says.", True),
        ("Whether it is served.", True),
        ("Return what a server says.", False),
        ("Offset of an entry.", False),
        ("Inference by enumeration.", False),
    ],
)
def test_the_words_are_told_from_longer_ones(text: str, is_dialect: bool) -> None:
    assert bool(DIALECT.match(text)) == is_dialect
