"""Claims of a checked bundle: its content, what a signer makes false, and bad input."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bundles import (
    change_statement,
    make_bundle,
    make_entries,
    make_finished,
    make_started,
    sign,
    spell,
)

from whence.cli.main import main
from whence.proof.bundle import is_bundle
from whence.proof.notes import NoteSigner
from whence.proof.verification import Check, Demands, LogKeys, Report, verify_bundle
from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.proof.signer import PrivateKey

SIGNER = PrivateKey.generate()
TEXT = " word0 word1 word2 word3"


def verify(data: bytes, text: str | None = None) -> Report:
    return verify_bundle(data, [SIGNER.public.pem], demands=Demands(text))


def find_fault(report: Report) -> Check:
    (fault,) = [check for check in report.checks if check.passed is False]
    assert not report.verified
    return fault


def run(data: bytes, directory: Path, *flags: str) -> int:
    """Run the command on a bundle."""
    (directory / "bundle").write_bytes(data)
    (directory / "key").write_text(SIGNER.public.pem)
    given = ("verify-bundle", str(directory / "bundle"), "--key", str(directory / "key"))
    return main([*given, *flags])


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ((), {"prompt": '"The capital of France is"', "text 0": f'"{TEXT}"'}),
        ((0,), {"prompt": "hidden", "text 0": f'"{TEXT}"'}),
        ((0, 2), {"prompt": "hidden", "text 0": '" word0[...] word2 word3"'}),
        ((4,), {"text 0": '" word0 word1 word2[...]"'}),
        ((1, 2, 3, 4), {"prompt": '"The capital of France is"', "text": "hidden"}),
    ],
)
def test_command_shows_prompt_and_output(
    hidden: Sequence[int],
    shown: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(make_bundle(SIGNER, hidden=hidden), tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in shown.items():
        assert f"       {name:<10} {text}" in lines


def test_command_shows_content_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(make_bundle(SIGNER), tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] == "The capital of France is"
    assert told["sequences"] == [{"sequence_index": 0, "text": TEXT, "whole": True}]


def test_content_cannot_look_like_a_line_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = make_started()
    started.prompt = started.model = started.owner = "a\nverified\x1b[2J"
    entries = make_entries(started=started)
    assert run(spell(sign(entries, make_finished(), SIGNER), entries), tmp_path) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert told.splitlines().count("verified") == 1


@pytest.mark.parametrize("text", [TEXT, TEXT + "\n"])
@pytest.mark.parametrize("hidden", [(), (0,)])
def test_text_of_the_generation_is_recognised(text: str, hidden: Sequence[int]) -> None:
    report = verify(make_bundle(SIGNER, hidden=hidden), text)
    assert report.verified, report.checks
    assert report.checks[-1] == Check("text", passed=True, detail="the text is that of sequence 0")


@pytest.mark.parametrize(
    ("text", "hidden", "words"),
    [
        (TEXT + " more", (), "not the output"),
        (TEXT + "\n\n", (), "not the output"),
        ("", (), "not the output"),
        (TEXT, (2,), "hides steps"),
        (" word0 word1 word2", (4,), "hides steps"),
        ("", (1, 2, 3, 4), "hides steps"),
    ],
)
def test_text_of_another_generation_is_refused(
    text: str, hidden: Sequence[int], words: str
) -> None:
    fault = find_fault(verify(make_bundle(SIGNER, hidden=hidden), text))
    assert fault.name == "text"
    assert words in fault.detail


def test_command_compares_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("another text")
    assert run(make_bundle(SIGNER), tmp_path, "--text", str(tmp_path / "text")) == 1
    assert "FAULT  text" in capsys.readouterr().out


def test_record_without_texts_has_no_text_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = make_started()
    started.content, started.prompt = generation_pb2.CONTENT_POLICY_TOKENS, ""
    step = step_pb2.Step(sequence_index=0, index=0, token_id=5).SerializeToString()
    entries = [*make_entries(0, started), (EntryKind.STEP, step)]
    data = spell(sign(entries, make_finished(1), SIGNER), entries)
    assert "keeps no text" in find_fault(verify(data, "")).detail
    assert run(data, tmp_path) == 0
    assert f"       {'text':<10} not on record" in capsys.readouterr().out.splitlines()


def test_each_of_two_sequences_has_its_text() -> None:
    started = make_started()
    started.effective_decoding.num_return_sequences = 2
    steps = [
        (
            EntryKind.STEP,
            step_pb2.Step(sequence_index=s, index=i, text=f"{s}{i}").SerializeToString(),
        )
        for i in range(2)
        for s in range(2)
    ]
    entries = [*make_entries(0, started), *steps]
    data = spell(sign(entries, make_finished(4), SIGNER), entries)
    assert "sequence 1" in verify(data, "1011").checks[-1].detail
    assert find_fault(verify(data, "0010")).name == "text"


# ---- what a signer makes false ----


def make_plain() -> bytes:
    """Return a bundle without training run and caller."""
    started = make_started()
    started.ClearField("training_run")
    started.ClearField("owner")
    entries = make_entries(started=started)
    return spell(sign(entries, make_finished(), SIGNER), entries)


@pytest.mark.parametrize(
    "more",
    [
        {"trainingRun": {"id": "run-1", "step": "1", "recordHead": "ff" * 32}},
        {"caller": "bob"},
        {"upstream": {"kind": "vllm"}},
        {"recordedBy": "transformers"},
        {"grades": {}},
    ],
)
def test_statement_that_says_more_than_its_start_is_refused(more: dict[str, Any]) -> None:
    assert verify(make_plain()).verified
    changed = change_statement(make_plain(), lambda s: s["predicate"].update(more), SIGNER)
    fault = find_fault(verify(changed))
    assert fault.name == "entries"
    assert f"statement's {next(iter(more))} differs" in fault.detail


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"numPromptTokens": 99}, "count 99 prompt tokens"),
        ({"sequences": ["FINISH_REASON_LENGTH"] * 7}, "at most 1"),
        ({"sequences": None}, "at most 1"),
    ],
)
def test_results_that_the_start_excludes_are_refused(results: dict[str, Any], words: str) -> None:
    changed = change_statement(
        make_bundle(SIGNER), lambda s: s["predicate"]["results"].update(results), SIGNER
    )
    fault = find_fault(verify(changed))
    assert fault.name == "entries"
    assert words in fault.detail


# ---- bad input ----


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "x"),
        ("model", None),
        ("results", []),
        ("decoding", 3),
        ("prompt", True),
        ("startTime", 0),
        ("endTime", "yesterday"),
    ],
)
def test_statement_with_a_wrong_type_is_refused_without_a_crash(
    name: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = change_statement(
        make_bundle(SIGNER, hidden=[0]), lambda s: s["predicate"].update({name: value}), SIGNER
    )
    assert run(data, tmp_path) == 1
    told = capsys.readouterr().out
    assert "FAULT  signature" in told
    assert f"predicate.{name}" in told


def test_half_of_a_surrogate_pair_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    log = {"index": 0, "size": 1, "path": [], "checkpoint": "\ud800"}
    data = json.dumps(json.loads(make_bundle(SIGNER)) | {"log": log}).encode()
    vkey = str(NoteSigner("example.com/log", Ed25519PrivateKey.generate()).key)
    assert run(data, tmp_path, "--log-key", vkey) == 1
    assert "FAULT  format" in capsys.readouterr().out
    keys = LogKeys(vkey)
    whole = data.replace(b"\\ud800", b"\\ud83d\\ude00")
    assert find_fault(verify_bundle(whole, [SIGNER.public.pem], log=keys)).name == "log"


@pytest.mark.parametrize(
    ("body", "words"), [(b"{},", "objects"), (b"[],", "lists"), (b"0,", "com")]
)
def test_bundle_of_too_many_values_is_refused_before_it_is_parsed(body: bytes, words: str) -> None:
    head = b'{"mediaType":"application/vnd.whence.bundle+json;version=1","leaves":['
    data = head + body * ((8 << 20) // len(body)) + b"{}]}"
    tracemalloc.start()
    try:
        fault = find_fault(verify(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fault.name == "format"
    assert words in fault.detail
    assert peak < 1 << 20


def test_bundles_are_told_from_other_files() -> None:
    assert is_bundle(make_bundle(SIGNER))
    assert is_bundle(b' {\n "mediaType": "other"}')
    assert not is_bundle(b'{"started": {"prompt": "{\\"mediaType\\": 1}"}}')
    assert not is_bundle(b"\xff")
