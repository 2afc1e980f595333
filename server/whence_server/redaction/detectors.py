"""Detectors of whence: mail addresses, card numbers, IBANs, telephone numbers and keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import re2

from whence_server.redaction.checks import (
    find_card_end,
    find_iban_end,
    find_phone_end,
)

MAX_MATCH_BYTES: Final = 16_384
"""Bound on every match; no more text than this waits until it is known."""
MORE_NEEDED: Final = -(1 << 40)
"""Answer of a detector that cannot tell a match's end before there is more text."""

_BYTES_BEFORE = {ord("\\"): 2, ord("_"): 1}
"""Bytes that stand before a word, by the first of them."""

FindEnd = Callable[[bytes, int, int, bool], int]
"""Function of text, begin and end of what the expression matched, and whether the text is whole.

It returns the match's end, MORE_NEEDED, or -n if no match begins in the next n bytes.
"""


@dataclass(frozen=True, slots=True)
class Detector:
    """Finder of one kind of text.

    Attributes:
        kind: name in the mark and in the record.
        regex: expression in RE2's syntax, over UTF-8; its matches are bounded.
        find_end: decides of a match of the expression whether it is one, and where it ends.
        begins_before: True if a match may begin with what stands directly before a word, and is not
            redacted: an escape of JSON, or the underscore of a longer name.
    """

    kind: str
    regex: str
    find_end: FindEnd
    begins_before: bool = False

    def count_before(self, text: bytes, begin: int) -> int:
        """Return the bytes of a match that stand before what is redacted."""
        return _BYTES_BEFORE.get(text[begin], 0) if self.begins_before else 0


def accept(_text: bytes, _begin: int, end: int, _whole: bool) -> int:
    """Accept what the expression has matched."""
    return end


def _check(find_end: Callable[[bytes, int, int], int]) -> FindEnd:
    return lambda text, begin, end, _whole: find_end(text, begin, end)


def _check_phone(fewest: int) -> FindEnd:
    return _check(partial(find_phone_end, fewest=fewest))


def _extend_to(regex: str, *, inclusive: bool) -> FindEnd:
    """Return a function that extends a match to the next match of an expression.

    Args:
        regex: expression for what ends the text.
        inclusive: whether the ending belongs to it.
    """
    ending = re2.compile(regex)

    def find_end(text: bytes, begin: int, end: int, whole: bool) -> int:
        limit = begin + MAX_MATCH_BYTES
        found = ending.search(text, end, min(limit, len(text)))
        if found is not None:
            return int(found.end() if inclusive else found.start())
        if len(text) > limit:
            while text[limit] & 0xC0 == 0x80:
                limit -= 1
            return limit
        return len(text) if whole else MORE_NEEDED

    return find_end


_extend_to_end_of_parts = _extend_to(r"[^0-9A-Za-z_.-]", inclusive=False)


def _extend_to_end_of_jwt(text: bytes, begin: int, end: int, whole: bool) -> int:
    """Extend the beginning of a JSON object in Base64 to a JSON Web Token, which has dots in it."""
    end = _extend_to_end_of_parts(text, begin, end, whole)
    if end == MORE_NEEDED:
        return end
    token = text[begin:end].rstrip(b".")
    return begin + len(token) if token.count(b".") >= 2 else begin - end


# Letters of Latin, Greek and Cyrillic: scripts whose words have spaces between them.
_LETTER = r"0-9A-Za-z\x{C0}-\x{52F}"
_MAIL = (
    rf"[{_LETTER}_.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@"
    rf"(?:[{_LETTER}](?:[{_LETTER}-]{{0,62}})\.){{1,8}}[A-Za-z\x{{C0}}-\x{{52F}}]{{2,24}}"
)
# In JSON, the letter of an escape such as \n stands directly before a word.
_WORD = r"(?:\b|\\[bfnrt])"
_PART = r"(?:\b|_|\\[bfnrt])"
# Spaces and hyphens, and those that do not break a line, as many models write them; dashes.
_GAPS = r" \x{A0}\x{2007}\x{202F}\x{2010}-\x{2013}-"
_CARD = rf"[2-6](?:[{_GAPS}]?[0-9]){{12,18}}"
_IBAN = rf"{_WORD}[A-Za-z]{{2}}[0-9]{{2}}(?:[{_GAPS}]?[0-9A-Za-z]){{11,29}}"
_BETWEEN = rf"[./(){_GAPS}]{{0,3}}"
_INTERNATIONAL = rf"(?:\+|{_WORD}00){_BETWEEN}[1-9](?:{_BETWEEN}[0-9]){{6,14}}"
_NATIONAL = (
    rf"(?:\(|{_WORD})0[1-9][0-9]{{0,4}}\)?[/{_GAPS}]{{0,3}}[0-9]{{2,8}}"
    rf"(?:[{_GAPS}]?[0-9]{{2,8}}){{0,4}}"
)
_NORTH_AMERICAN = (
    rf"(?:{_WORD}1[.{_GAPS}]{{1,2}})?(?:\(|{_WORD})[2-9][0-9]{{2}}\)?[.{_GAPS}]{{1,2}}"
    rf"[0-9]{{3}}[.{_GAPS}][0-9]{{4}}"
)

_PREFIXES_OF_KEYS = (
    "gh[pousr]_[0-9A-Za-z]",  # GitHub
    "github_pat_[0-9A-Za-z]",
    "glpat-[0-9A-Za-z]",  # GitLab
    "sk-[0-9A-Za-z]",  # OpenAI, Anthropic and others
    "[rs]k_(?:live|test)_[0-9A-Za-z]",  # Stripe
    "xox[a-z]-[0-9A-Za-z]",  # Slack
    "xapp-[0-9]",
    "hf_[0-9A-Za-z]",  # Hugging Face
    "npm_[0-9A-Za-z]",
    "pypi-[0-9A-Za-z]",
    "AIza[0-9A-Za-z]",  # Google
    "dckr_pat_[0-9A-Za-z]",  # Docker
    "whence_[0-9A-Za-z]",
)
_TOKEN = _PART + r"(?:" + "|".join(_PREFIXES_OF_KEYS) + r")[0-9A-Za-z_-]{19}"
_AWS_KEY_ID = _PART + r"(?:AKIA|ASIA|AIDA|AROA)[0-9A-Z]{16}\b"
_JWT = _PART + r"eyJ[0-9A-Za-z_-]{12}"
_PRIVATE_KEY = r"-----BEGIN [0-9A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----"

DETECTORS: Final[Sequence[Detector]] = (
    Detector("mail", _MAIL, accept),
    Detector("card", _CARD, _check(find_card_end)),
    Detector("iban", _IBAN, _check(find_iban_end), begins_before=True),
    Detector("phone", _INTERNATIONAL, _check_phone(7), begins_before=True),
    Detector("phone", _NATIONAL, _check_phone(8), begins_before=True),
    Detector("phone", _NORTH_AMERICAN, _check_phone(10), begins_before=True),
    Detector("key", _TOKEN, _extend_to(r"[^0-9A-Za-z_-]", inclusive=False), begins_before=True),
    Detector("key", _AWS_KEY_ID, accept, begins_before=True),
    Detector("key", _JWT, _extend_to_end_of_jwt, begins_before=True),
    Detector("key", _PRIVATE_KEY, _extend_to(r"-----END [0-9A-Z ]{1,48}-----", inclusive=True)),
)
