"""Typed views of steps, vocabularies and addresses, and output on the terminal."""

import math
import re

import pytest
import wcwidth
from client_fake_server import VOCABULARY, step
from hypothesis import given
from hypothesis import strategies as st

from whence import summary
from whence.channel import resolve_target
from whence.cli import render
from whence.generation import TokenReader
from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.model_pb2 import GetVocabularyResponse
from whence.v1.step_pb2 import Step
from whence.vocabulary import Vocabulary, VocabularyBuilder


def read(recorded: Step):
    def lookup(model: str, digest: str, token_id: int) -> str:
        return f"{model}/{digest}/{token_id}"

    started = GenerationStarted(model="m", tokenizer_digest="d", processor_names=["temperature"])
    (token,) = TokenReader(started, lookup).read([recorded])
    return token


def test_a_token_shows_the_whole_step():
    recorded = step(3, 2, " world", sequence_index=1, begin=5)
    token = read(recorded)
    assert (token.text, token.token_id, token.index, token.sequence_index) == (" world", 2, 3, 1)
    assert token.text_bytes == range(5, 11)
    assert token.probability == pytest.approx(0.5)
    assert token.sampling_probability == pytest.approx(0.75)
    assert (token.rank, token.entropy, token.sampling_entropy) == (0, 1.25, None)
    assert token.token_text == "m/d/2"
    own, removed = token.candidates
    assert (own.token_id, own.text) == (2, "m/d/2")
    assert removed.sampling_logprob == -math.inf
    assert removed.sampling_probability == 0.0
    assert token.processors[0]._asdict() == {
        "name": "temperature",
        "num_kept": 4,
        "removed_mass": 0.25,
        "token_logprob": -0.5,
    }
    assert tuple(token.draw) == (0.125, None, 2.0)
    assert tuple(token.timing) == (1, 2, 3, 4, 5)
    assert token.step is recorded
    assert token == read(recorded)


def test_absent_is_none_and_zero_is_zero():
    bare = read(Step())
    assert (bare.token_id, bare.logprob, bare.probability, bare.rank) == (None,) * 4
    assert (bare.entropy, bare.sampling_logprob, bare.draw, bare.timing) == (None,) * 4
    assert (bare.candidates, bare.processors, bare.token_text) == ((), (), "")
    zero = read(Step(token_id=0, logprob=0.0, rank=0, entropy=0.0))
    assert (zero.token_id, zero.probability, zero.rank, zero.entropy) == (0, 1.0, 0, 0.0)


def test_candidates_of_a_forced_step_have_one_distribution():
    recorded = Step(token_id=1)
    recorded.candidates.token_ids.append(1)
    recorded.candidates.logprobs.append(-0.5)
    (candidate,) = read(recorded).candidates
    assert candidate.sampling_logprob is None
    assert candidate.sampling_probability is None


@given(st.permutations(range(len(VOCABULARY))))
def test_a_vocabulary_is_put_together_from_parts_in_any_order(order):
    builder = VocabularyBuilder()
    for first in order:
        builder.add(GetVocabularyResponse(first_token_id=first, tokens=[VOCABULARY[first]]))
    assert tuple(builder.build()) == VOCABULARY


def test_a_vocabulary_has_text_for_people_and_bytes_for_programs():
    builder = VocabularyBuilder()
    builder.add(GetVocabularyResponse(first_token_id=0, tokens=VOCABULARY))
    vocabulary = builder.build()
    assert vocabulary.text_of(5) == "<0xC3>"
    assert vocabulary[5] == b"\xc3"
    assert vocabulary.text_of(len(vocabulary)) == "", "padding beyond the tokenizer's own"


@pytest.mark.parametrize(
    "target", ["localhost:1", "[::1]:5", "unix:a/b", "dns:///x:1", "ipv4:1.2.3.4:5"]
)
def test_valid_targets_are_accepted(target):
    assert resolve_target(target) == target


@pytest.mark.parametrize(
    "target", ["localhost", "http://localhost:1", "::1", "a b:1", "x:y", "caf\udce9:1"]
)
def test_targets_that_are_no_addresses_are_refused(target):
    with pytest.raises(ValueError, match="HOST:PORT"):
        resolve_target(target)


def test_the_default_target_is_loopback_or_the_variable(monkeypatch):
    monkeypatch.delenv("WHENCE_TARGET", raising=False)
    assert resolve_target(None) == "127.0.0.1:50051"
    monkeypatch.setenv("WHENCE_TARGET", "unix:/x")
    assert resolve_target(None) == "unix:/x"


@given(st.text())
def test_no_control_character_reaches_the_terminal(text):
    shown = summary.escape(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown)
    assert not any(c in "\u202e\u2066\u200f" for c in shown)
    assert "\n" not in summary.quote(text)


@pytest.mark.parametrize("text", ["plain", "é中文", "👩‍👧", "tab\tand\nnewline"])
def test_ordinary_text_is_shown_as_it_is(text):
    assert summary.escape(text) == text


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Mn", "Me", "Cs"])))
def test_fitted_text_has_the_width_that_was_asked_for(text):
    fitted = render.fit_columns(text, 8)
    assert wcwidth.wcswidth(fitted) == 8


def make_row(texts: list[str], num_columns: int | None, *, num_requested: int = 0) -> str:
    recorded = Step(token_id=0, logprob=-1.0, rank=0)
    recorded.candidates.token_ids.extend(range(len(texts)))
    recorded.candidates.logprobs.extend([-1.0] * len(texts))
    recorded.requested_logprobs.logprobs.extend([-2.0] * num_requested)
    started = GenerationStarted(model="m")
    started.effective_trace.logprob_token_ids.extend(range(1, 1 + num_requested))
    (token,) = TokenReader(started, lambda _model, _digest, index: texts[index]).read([recorded])
    return render.format_row(token, color=True, num_columns=num_columns)


def strip_colors(row: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", row)


@given(
    texts=st.lists(st.text(max_size=20), min_size=5, max_size=9),
    num_columns=st.integers(20, 250),
    num_requested=st.integers(0, 4),
)
def test_a_row_is_never_wider_than_its_terminal(texts, num_columns, num_requested):
    row = make_row(texts, num_columns, num_requested=num_requested)
    assert wcwidth.wcswidth(strip_colors(row)) <= num_columns


@pytest.mark.parametrize(
    ("num_columns", "num_shown"), [(60, 0), (61, 1), (81, 1), (82, 2), (999, 8)]
)
def test_as_many_runners_up_as_fit_are_shown_and_all_in_a_pipe(num_columns, num_shown):
    texts = ["own", *(f"r{index}" for index in range(8))]
    row, whole = strip_colors(make_row(texts, num_columns)), strip_colors(make_row(texts, None))
    assert whole.count('"r') == 8
    assert row.count('"r') == num_shown
    assert whole.startswith(row.rstrip())
    wide = ["own", *["日本語"] * 8]
    assert strip_colors(make_row(wide, num_columns)).count("日") == num_shown, (
        "two columns a character"
    )


def test_requested_tokens_come_before_runners_up():
    texts = ["own", *(f"r{index}" for index in range(8))]
    row = strip_colors(make_row(texts, 96, num_requested=2))
    assert row.count("requested") == 1
    assert row.rpartition("requested")[2].count('"r') == 2
    assert row.partition("|")[0].count('"r') == 0


def test_colours_go_from_red_to_green():
    assert render.paint("x", 0.0) == "\x1b[38;5;196mx\x1b[39m"
    assert render.paint("x", 1.0) == "\x1b[38;5;46mx\x1b[39m"
    assert render.paint("x", None) == "x"


@pytest.mark.parametrize(
    ("mode", "tty", "no_color", "expected"),
    [
        ("auto", True, "", True),
        ("auto", True, "1", False),
        ("auto", False, "", False),
        ("always", False, "1", True),
        ("never", True, "", False),
    ],
)
def test_colour_follows_flag_terminal_and_no_color(monkeypatch, mode, tty, no_color, expected):
    class Stream:
        def isatty(self) -> bool:
            return tty

    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert render.wants_color(mode, Stream()) is expected


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b"\xf0", "<0xF0>"),
        (b"\xf0\x9f", "<0xF0 0x9F>"),
        (b" \xf0\x9f\x98", " <0xF0 0x9F 0x98>"),
        (b"\x98\x80", "<0x98 0x80>"),
        (b"a\xc3\xa9\xffb\xfe", "a\u00e9<0xFF>b<0xFE>"),
        ("\ufffd".encode(), "\ufffd"),
        (b"", ""),
    ],
)
def test_bytes_that_are_no_character_are_named(token, text):
    assert Vocabulary((token,)).text_of(0) == text


def test_named_bytes_are_never_cut():
    first, second = render.fit_name("<0xF0 0x9F 0x98>", 12), render.fit_name("<0xF0 0x9F 0x99>", 12)
    assert (first, second) == ('"<0xF0 0x9F 0x98>"', '"<0xF0 0x9F 0x99>"')
    assert render.fit_name("<0xF0>", 12) == '"<0xF0>"    '
    assert render.fit_name("a long token", 8) == '"a long\u2026'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\ufe0f", '"\\ufe0f"'),
        ("\u200d", '"\\u200d"'),
        (" \u200d", '" \\u200d"'),
        ("a\u200b", '"a\\u200b"'),
        ("\u00a0", '"\\u00a0"'),
        ("\u3164", '"\\u3164"'),
        ("\U000e0020", '"\\U000e0020"'),
        ("\U0001f3f3\ufe0f\u200d\U0001f308", '"\U0001f3f3\ufe0f\u200d\U0001f308"'),
        ("caf\u00e9 \u6f22", '"caf\u00e9 \u6f22"'),
    ],
)
def test_tokens_that_show_nothing_are_told_apart_by_their_codes(text: str, shown: str) -> None:
    assert summary.quote(text) == shown


def test_requested_tokens_have_the_ids_of_the_effective_trace():
    started = GenerationStarted(model="m", tokenizer_digest="d")
    started.effective_trace.logprob_token_ids.extend([9, 0])
    recorded = Step(token_id=1)
    recorded.requested_logprobs.logprobs.extend([-0.5, -math.inf])
    recorded.requested_logprobs.sampling_logprobs.extend([-math.inf, -math.inf])
    reader = TokenReader(started, lambda _model, _digest, token_id: f"<{token_id}>")
    for (token,) in (reader.read([recorded]), reader.read([recorded], prompt=True)):
        first, second = token.requested_logprobs
        assert (first.token_id, first.text, first.logprob) == (9, "<9>", -0.5)
        assert (second.token_id, second.probability, second.sampling_probability) == (0, 0.0, 0.0)
        row = render.format_row(token, color=False)
        names = [render.fit_name(one.text, render.CANDIDATE_COLUMNS) for one in (first, second)]
        assert row.endswith(f"  | requested  {names[0]}  60.7%  {names[1]}   0.0%")
    assert read(Step()).requested_logprobs == ()
