"""Checks of what an expression has found: digits that are a card, an IBAN or a telephone number.

Each check gets the text, and the range that its expression matched. It returns the end of the
longest beginning of that range that passes. If none does, it returns NO_MATCH, or -n if no match
can begin in the next n bytes either. It looks at no byte beyond the one after the range, which is
known by then.
"""

import re
from collections.abc import Iterator

NO_MATCH = -1

# Lengths by country: the registry of ISO 13616 (release 99).
_IBAN_LENGTHS = {
    int(length): frozenset(countries.split())
    for length, countries in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FK FO GL NL SD",
        "19": "MK SI",
        "20": "AT BA EE HN KZ LT LU MN XK",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
}
_LENGTH_OF_COUNTRY = {
    country: length for length, countries in _IBAN_LENGTHS.items() for country in countries
}
_MIN_CARD_DIGITS = 13
_DOUBLES = tuple(2 * digit - 9 * (digit > 4) for digit in range(10))
"""Sum of the digits of the double of each digit."""
_FIRST_DIGITS_OF_CARDS = frozenset(b"23456")
_MAX_PHONE_DIGITS = 15
_DIGITS = re.compile(rb"[0-9]+")
# Spaces and hyphens that do not break a line, and dashes: U+00A0, U+2007, U+2010 to 2013, U+202F.
_GAP = rb"(?:[ ./-]|\xc2\xa0|\xe2\x80[\x87\x90-\x93\xaf])"
_DATE = re.compile(rb"\d{1,2}" + _GAP + rb"\d{1,2}" + _GAP + rb"\d{4}")


def find_card_end(text: bytes, begin: int, end: int) -> int:
    """Check for a payment card's number: 13 to 19 digits that satisfy the formula of Luhn.

    The first digit is 2 to 6, as of the banks' and travel companies' cards (ISO/IEC 7812-1).
    """
    run = _DIGITS.match(text, begin, end)
    # A number begins with the first digit of a run.
    found = NO_MATCH if run is None else run.start() - run.end()
    if text[begin] not in _FIRST_DIGITS_OF_CARDS or _is_digit(text, begin - 1):
        return found
    num_digits = 0
    # Sums of the formula in which the newest digit is doubled, and in which it is not.
    doubled = plain = 0
    for place in range(begin, end):
        digit = text[place] - 0x30
        if not 0 <= digit <= 9:
            continue
        num_digits += 1
        doubled, plain = plain + _DOUBLES[digit], doubled + digit
        is_whole = num_digits >= _MIN_CARD_DIGITS and not _is_digit(text, place + 1)
        if is_whole and plain % 10 == 0:
            found = place + 1
    return found


def find_iban_end(text: bytes, begin: int, end: int) -> int:
    """Check for an IBAN: the length of its country, and check digits by ISO 7064 (MOD 97-10)."""
    length = _LENGTH_OF_COUNTRY.get(text[begin : begin + 2].decode().upper())
    if length is None:
        return NO_MATCH
    num_characters = 0
    for place in range(begin, end):
        num_characters += text[place : place + 1].isalnum()
        if num_characters == length:
            number = text[begin : place + 1]
            ends = not text[place + 1 : place + 2].isalnum()
            return place + 1 if ends and is_iban_valid(number) else NO_MATCH
    return NO_MATCH


def is_iban_valid(number: bytes) -> bool:
    """Return whether the check digits are right; separators count for nothing."""
    characters = [chr(c) for c in number if c < 0x80 and chr(c).isalnum()]
    digits = "".join(str(int(c, 36)) for c in characters[4:] + characters[:4])
    return int(digits) % 97 == 1


def find_phone_end(text: bytes, begin: int, end: int, *, fewest: int) -> int:
    """Check for a telephone number of at most 15 digits (ITU-T E.164) that is no date."""
    if _is_digit(text, begin - 1):
        return NO_MATCH
    for place in _list_ends(text, begin, end):
        number = text[begin:place]
        digits = _take_digits(number)
        # Two zeros before the country's code stand for a plus sign, and do not count.
        num_digits = len(digits) - 2 * digits.startswith(b"00")
        if fewest <= num_digits <= _MAX_PHONE_DIGITS and not _DATE.fullmatch(number):
            return place
    return NO_MATCH


def _list_ends(text: bytes, begin: int, end: int) -> Iterator[int]:
    """Yield the ends of the runs of digits in a range, last first."""
    for place in range(end, begin, -1):
        if _is_digit(text, place - 1) and not _is_digit(text, place):
            yield place


def _is_digit(text: bytes, place: int) -> bool:
    return 0 <= place < len(text) and 0x30 <= text[place] <= 0x39


def _take_digits(text: bytes) -> bytes:
    return bytes(c for c in text if 0x30 <= c <= 0x39)
