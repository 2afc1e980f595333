"""Detectors, with numbers that their issuers and standards have published for tests."""

import phonenumbers
import pytest

from whence_server.redaction.checks import find_card_end, is_iban_valid
from whence_server.redaction.detectors import DETECTORS
from whence_server.redaction.marks import redact
from whence_server.redaction.stream import Detectors, find_ranges

ALL = Detectors(DETECTORS)

# Test numbers of Stripe and PayPal.
CARDS = (
    *("4242424242424242", "4000056655665556", "5555555555554444", "2223003122003222"),
    *("378282246310005", "371449635398431", "6011111111111117", "3056930009020004"),
    *("36227206271667", "3566002020360505", "6200000000000005", "4222222222222"),
)
# Examples in the registry of ISO 13616.
IBANS = (
    *("AD1200012030200359100100", "AE070331234567890123456", "AL47212110090000000235698741"),
    *("AT611904300234573201", "AZ21NABZ00000000137010001944", "BA391290079401028494"),
    *("BE68539007547034", "BG80BNBG96611020345678", "BR1800360305000010009795493C1"),
    *("CH9300762011623852957", "CY17002001280000001200527600", "CZ6508000000192000145399"),
    *("DE89370400440532013000", "DK5000400440116243", "EE382200221020145685"),
    *("ES9121000418450200051332", "FI2112345600000785", "FR1420041010050500013M02606"),
    *("GB29NWBK60161331926819", "GR1601101250000000012300695", "HU42117730161111101800000000"),
    *("IE29AIBK93115212345678", "IL620108000000099999999", "IS140159260076545510730339"),
    *("IT60X0542811101000000123456", "KW81CBKU0000000000001234560101", "LI21088100002324013AA"),
    *("LU280019400644750000", "MT84MALT011000012345MTLCAST001S", "NL91ABNA0417164300"),
    *("NO9386011117947", "PL61109010140000071219812874", "PT50000201231234567890154"),
    *("RO49AAAA1B31007593840000", "SA0380000000608010167519", "SE4550000000058398257466"),
    *("SI56263300012039086", "SK3112000000198742637541", "TR330006100519786457841326"),
)
# The example of jwt.io.
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIn0."
    "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c"
)
KEYS = (
    "AKIAIOSFODNN7EXAMPLE",  # of AWS's documentation
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",  # of GitHub's documentation
    "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz0123456789",
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
    "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy",
    "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "glpat-abcdefghijklmnopqrst",
    "whence_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4",
    JWT,
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\n-----END EC PRIVATE KEY-----",
)
MAILS = (
    *("joe@example.com", "first.last+tag@mail.example.co.uk", "o'neil_x@a-b.example.org"),
    *("jürgen@müller.example", "иван@пример.рф", "x@xn--bcher-kva.example"),
)


# Spaces that do not break a line, and hyphens and dashes.
GAPS = "\u00a0\u2007\u202f\u2010\u2011\u2012\u2013"


def group(number: str, sign: str) -> str:
    return sign.join(number[i : i + 4] for i in range(0, len(number), 4))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("card", card) for card in CARDS),
        *(("card", group(card, sign)) for card in CARDS for sign in " -"),
        *(("card", group(CARDS[0], sign)) for sign in GAPS),
        *(("iban", iban) for iban in IBANS),
        *(("iban", group(iban, " ")) for iban in IBANS),
        *(("iban", group(IBANS[0], sign)) for sign in GAPS),
        *(("iban", iban.lower()) for iban in IBANS[:2]),
        *(("key", key) for key in KEYS),
        *(("mail", mail) for mail in MAILS),
    ],
)
def test_published_example_is_found_whole(kind: str, text: str) -> None:
    for before, after in (("", ""), ("It is ", ", I think."), ("(", ")"), ("\n", "\n")):
        told = f"{before}{text}{after}"
        assert redact(told, find_ranges(ALL, told)) == f"{before}[{kind}]{after}"


@pytest.mark.parametrize("before", ["\\n", "\\t", "a\\r"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("key", key) for key in KEYS),
        *(("iban", IBANS[0]), ("card", CARDS[0]), ("phone", "030 12345678")),
        *(("phone", "0049 30 1234567"), ("phone", "415-555-2671"), ("phone", "+49 30 1234567")),
    ],
)
def test_secret_after_an_escape_of_json_is_found(kind: str, text: str, before: str) -> None:
    told = f"{before}{text} "
    assert redact(told, find_ranges(ALL, told)) == f"{before}[{kind}] "


def test_key_at_the_end_of_a_name_is_found() -> None:
    told = f"token_{KEYS[1]}=x"
    assert redact(told, find_ranges(ALL, told)) == "token_[key]=x"


@pytest.mark.parametrize("region", sorted(phonenumbers.SUPPORTED_REGIONS))
def test_telephone_number_of_every_region_is_found_in_international_form(region: str) -> None:
    number = phonenumbers.example_number(region)
    for form in (
        phonenumbers.PhoneNumberFormat.INTERNATIONAL,
        phonenumbers.PhoneNumberFormat.E164,
    ):
        told = f"Call {phonenumbers.format_number(number, form)}, please."
        assert redact(told, find_ranges(ALL, told)) == "Call [phone], please."


@pytest.mark.parametrize(
    "text",
    [
        *("(415) 555-2671", "415-555-2671", "415.555.2671", "1-800-555-0199", "1 (415) 555-2671"),
        *("030 1234567", "(030) 123 45 67", "0171/1234567", "01 23 45 67 89", "07911 123456"),
        *("0049 30 1234567", "+49 (0) 30 1234567", "+1-202-555-0143"),
        *(
            form.replace(" ", sign)
            for form in ("+49 30 1234567", "415 555 2671", "030 123 45 67")
            for sign in GAPS
        ),
    ],
)
def test_telephone_number_in_a_national_form_is_found(text: str) -> None:
    told = f"Call {text}."
    assert redact(told, find_ranges(ALL, told)) == "Call [phone]."


@pytest.mark.parametrize(
    "text",
    [
        "The year 2024, 1,234,567 people and 3.14159265358979.",
        "4111 1111 1111 1112",  # the last digit is wrong
        "1234567812345670",  # no card begins with 1
        "DE88370400440532013000",  # the check digits are wrong
        "DE8937040044053201300",  # too short
        "joe@localhost and @joe and joe@.com",
        "01\u201102\u20112024, 01\u202f02\u202f2024",
        "01-02-2024, 2024-01-02 and 2024-01-02T10:00:00Z",
        "version 1.2.3-rc.4, commit 9070ab05a15dbeef5c6708fc32e2327afa82c11f",
        "fce5d6ec-8dd1-459e-aa08-8f5a04f05848",
        "risk-free task-oriented desk-work",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_what_only_resembles_one_stays(text: str) -> None:
    assert find_ranges(ALL, text) == []


@pytest.mark.parametrize("card", CARDS)
def test_every_wrong_digit_of_a_card_breaks_the_sum(card: str) -> None:
    assert find_card_end(card.encode(), 0, len(card)) == len(card)
    for place in range(len(card)):
        for digit in "0123456789".replace(card[place], ""):
            wrong = f"{card[:place]}{digit}{card[place + 1 :]}"
            assert find_card_end(wrong.encode(), 0, len(card)) < 0


@pytest.mark.parametrize("iban", IBANS)
def test_every_wrong_digit_of_an_iban_breaks_its_check(iban: str) -> None:
    assert is_iban_valid(iban.encode())
    for place in range(len(iban)):
        for digit in "0123456789".replace(iban[place], "") if iban[place].isdigit() else "":
            assert not is_iban_valid(f"{iban[:place]}{digit}{iban[place + 1 :]}".encode())
