"""`whence-server verify-generation` of bundles: nothing is computed before they are checked."""

import json
from collections.abc import Callable, Sequence
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

from whence.proof.bundle import Bundle, read_bundle
from whence.proof.statement import Statement
from whence.proof.verification import verify_bundle
from whence.v1 import generation_pb2, step_pb2
from whence_server.cli import main
from whence_server.domain.entries import EntryKind
from whence_server.proof.signer import PrivateKey
from whence_server.rpc.bundled_record import make_record
from whence_server.rpc.verification_record import UnverifiableError

SIGNER = PrivateKey.generate()


def run(data: bytes, directory: Path, *flags: str, key: PrivateKey | None = SIGNER) -> int:
    """Run the command with a model that does not exist: it would fail if anything was computed."""
    (directory / "bundle").write_bytes(data)
    given = ["verify-generation", str(directory / "bundle"), "--model", str(directory / "none")]
    if key is not None:
        (directory / "key").write_text(key.public.pem)
        given += ["--key", str(directory / "key")]
    return main([*given, *flags])


def check(data: bytes) -> tuple[Bundle, Statement]:
    report = verify_bundle(data, [SIGNER.public.pem])
    assert report.verified, report.checks
    assert report.bundle is not None
    assert report.statement is not None
    return report.bundle, report.statement


def exchange_a_token(data: bytes) -> bytes:
    """Return a bundle in which the token of one step is another."""
    bundle, other = json.loads(data), json.loads(make_bundle(SIGNER))
    bundle["leaves"][2]["entry"] = other["leaves"][3]["entry"]
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (exchange_a_token, "FAULT: the entries are not those that were signed"),
        (lambda data: data[:-20], "FAULT: the bundle is no valid JSON"),
        (
            lambda data: change_statement(
                data, lambda s: s["predicate"]["model"].update(digest="0"), SIGNER
            ),
            "FAULT: the statement's model differs",
        ),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_false_bundle_is_refused_before_anything_is_computed(
    edit: Callable[[bytes], bytes],
    words: str,
    flags: Sequence[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(edit(make_bundle(SIGNER)), tmp_path, *flags) == 1
    told = capsys.readouterr()
    assert words in (told.err if flags else told.out)
    assert not flags or told.out == ""


def test_bundle_of_a_stranger_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(make_bundle(PrivateKey.generate()), tmp_path) == 1
    assert "no valid signature of a trusted key" in capsys.readouterr().out


def test_bundle_needs_a_key_and_a_key_needs_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(make_bundle(SIGNER), tmp_path, key=None) == 2
    assert "with --key" in capsys.readouterr().err
    assert run(b"{}", tmp_path) == 2
    assert "is no bundle" in capsys.readouterr().err


def test_hidden_entries_cannot_be_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(make_bundle(SIGNER, hidden=[2]), tmp_path) == 3
    assert "hides 1 of 5 entries" in capsys.readouterr().out


def test_record_of_a_bundle_is_what_was_recorded() -> None:
    started = make_started()
    started.effective_decoding.stop_token_ids.append(7)
    started.effective_decoding.num_return_sequences = 2
    messages: Sequence[tuple[EntryKind, Any]] = [
        (EntryKind.STARTED, started),
        (EntryKind.PROMPT_STEP, step_pb2.Step(index=0, token_id=1)),
        (EntryKind.BEAM_ROUND, generation_pb2.BeamRound(index=0)),
        (EntryKind.STEP, step_pb2.Step(sequence_index=0, index=0, token_id=4, text="a")),
        (EntryKind.STEP, step_pb2.Step(sequence_index=1, index=0, token_id=5, text="b")),
        (EntryKind.STEP, step_pb2.Step(sequence_index=0, index=1, token_id=6, text="c")),
        (EntryKind.STEP, step_pb2.Step(sequence_index=1, index=1, token_id=7)),
    ]
    entries = [(kind, message.SerializeToString()) for kind, message in messages]
    finished = generation_pb2.GenerationFinished(
        finish_reason=generation_pb2.FINISH_REASON_STOP,
        num_prompt_tokens=5,
        num_generated_tokens=4,
    )
    for index in range(2):
        finished.sequences.add(
            sequence_index=index, finish_reason=generation_pb2.FINISH_REASON_STOP
        )
    record = make_record(*check(spell(sign(entries, finished, SIGNER), entries)))
    assert record.started == started
    assert [*record.prompt_steps, *record.beam_rounds] == [it for _, it in messages[1:3]]
    assert list(record.steps) == [it for _, it in messages[3:]]
    first, second = record.finished.sequences
    assert (first.text, list(first.token_ids), first.stop) == (
        "ac",
        [4, 6],
        "a secret stop string",
    )
    assert (second.text, list(second.token_ids), second.stop) == ("b", [5, 7], "")
    assert record.finished.num_generated_tokens == 4
    assert record.finished.num_prompt_tokens == 5
    assert record.finished.finish_reason == first.finish_reason == second.finish_reason


@pytest.mark.parametrize(
    "results", [{"finishReason": "SOMETHING"}, {"finishReason": 3}, {"sequences": []}]
)
def test_results_that_nobody_knows_are_not_verifiable(results: dict[str, Any]) -> None:
    data = change_statement(
        make_bundle(SIGNER), lambda s: s["predicate"]["results"].update(results), SIGNER
    )
    with pytest.raises(UnverifiableError):
        make_record(*check(data))


def test_steps_keep_their_bytes() -> None:
    entries = make_entries()
    data = spell(sign(entries, make_finished(), SIGNER), entries)
    bundle, statement = check(data)
    record = make_record(bundle, statement)
    assert [step.SerializeToString() for step in record.steps] == [it for _, it in entries[1:]]
    assert read_bundle(data) == bundle
