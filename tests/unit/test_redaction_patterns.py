"""Own patterns: what is refused says where and why; bounds hold."""

import re
from pathlib import Path

import pytest

from whence_server.domain.errors import ConfigurationError
from whence_server.redaction.marks import redact
from whence_server.redaction.opening import open_detectors
from whence_server.redaction.patterns import check_pattern
from whence_server.redaction.stream import find_ranges
from whence_server.redaction.syntax import measure_longest, measure_shortest, parse


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("C-[0-9]+", "'+' at character 8 repeats without a bound: write {1,64}"),
        ("(?:ab)*", "'*' at character 7 repeats without a bound"),
        ("a{3,}", "'{3,}' at character 2 repeats without a bound: write {3,64}"),
        ("x(", r"missing ) at character 1 ('x(')"),
        ("a(?=b)", r"invalid perl operator at character 2 ('(?=')"),
        (r"(a)\1", r"invalid escape sequence at character 4 ('\\1')"),
        ("[z-a]", "invalid character class range at character 2 ('z-a')"),
        ("x?", "matches the empty text"),
        (r"\b", "matches the empty text"),
        ("a(?i)b", "'(?i)b' at character 2 sets flags"),
        (r"\Qa\E", "is not supported"),
        (r"a\C", "'\\\\C' at character 2 is not supported"),
        (r"\d{1000}" * 5, "has matches of up to 20000 bytes; the longest may have 16384"),
    ],
)
def test_pattern_that_cannot_be_searched_is_refused_with_its_place(
    pattern: str, fault: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *("abc", "a|bcd|", "(?:ab){2,5}c?", "(a(b|cd){1,3}){2}", "[]a]{3}", "[^]a-z]x", "a{,2}b"),
        *(r"\bab\b", r"^a$", r"\.\[a{2}", r"(?:)a", "a{0}b{1,1}", r"[\]x]{2}y"),
    ],
)
def test_bounds_are_those_that_python_computes(pattern: str) -> None:
    node = parse(pattern)
    # The oracle counts characters; a class may match one of four bytes.
    low, high = re._parser.parse(pattern.replace("[]a]", r"[\]a]")).getwidth()  # type: ignore[attr-defined]
    classes = sum(
        4 - 1
        for match in re.finditer(
            r"\[\^?\]?(?:\\.|[^\]])*\](?:\{(\d)\})?", pattern.replace(r"\[", "")
        )
        for _ in range(int(match[1] or 1))
    )
    if pattern == "a{,2}b":
        low = high = 6  # RE2 reads the braces as they are.
    assert measure_shortest(node) == low
    assert measure_longest(node) == high + classes


def write(directory: Path, text: str) -> Path:
    path = directory / "patterns.toml"
    path.write_text(text)
    return path


def test_own_pattern_names_its_matches_before_whence_does(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[patterns]\ncustomer = '(?i)\\bc-[0-9]{8}\\b'\nstaff = '[a-z]{1,20}@corp\\.example'\n",
    )
    detectors = open_detectors(("mail",), path)
    text = "C-12345678 asks joe@corp.example and joe@example.com, xc-12345678 4111111111111111"
    assert redact(text, find_ranges(detectors, text)) == (
        "[customer] asks [staff] and [mail], xc-12345678 4111111111111111"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("patterns = 3", "must have one table [patterns]"),
        ("[patterns]\n", "with 1 to 64 lines"),
        ("[other]\na = 'b'", "must have one table [patterns]"),
        ("[patterns]\na = 'b'\n[more]\n", "must have one table [patterns]"),
        ("[patterns]\na = b", "is no TOML file (Invalid value (at line 2, column 5))"),
        ("[patterns]\na = 3", "'a': must be a text between quotation marks"),
        ("[patterns]\nMail = 'b'", "'Mail': the name must begin with a letter from a to z"),
        ("[patterns]\nmail = 'b'", "be none of mail, card, iban, phone, key"),
        ("[patterns]\nok = 'b'\nid = 'x('", "'id': is no regular expression of RE2: missing )"),
    ],
)
def test_file_that_cannot_be_used_is_refused_with_the_place(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=re.escape(fault)) as caught:
        open_detectors((), path)
    assert str(path) in str(caught.value)


def test_patterns_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    lines = [f"p{i} = '\\pL{{20}}{i}'" for i in range(64)]
    path = write(tmp_path, "\n".join(["[patterns]", *lines]))
    with pytest.raises(ConfigurationError, match="RE2 cannot search these patterns"):
        open_detectors((), path)
