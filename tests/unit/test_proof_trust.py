"""Trust in keys: their roles, stolen and expired ones, and lists that were saved elsewhere."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle, make_entries, make_finished, make_started, sign, spell

from whence.cli.json_lines import describe_message, format_json
from whence.cli.main import main
from whence.proof.envelope import STATEMENT_TYPE
from whence.proof.faults import ProofError
from whence.proof.key_list import SavedKeys, parse_saved_list
from whence.proof.verification import Check, Demands, Origin, Report, verify_bundle
from whence.v1 import proof_pb2
from whence_server.proof.signer import PrivateKey, seal
from whence_server.proof.signing_keys import make_entry

SERVER, TRAINER = PrivateKey.generate(), PrivateKey.generate()
MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS
START_NS = 1_770_000_000_000_000_000


def find_fault(report: Report) -> Check:
    (fault,) = [check for check in report.checks if check.passed is False]
    assert not report.verified
    return fault


def make_training(signer: PrivateKey) -> bytes:
    """Return a signed training that made the weights of `make_started`."""
    started = make_started()
    training = {
        "trainingRunId": started.training_run.training_run_id,
        "recordHead": started.training_run.record_head,
        "step": "600",
        "modelDigest": started.model_digest,
    }
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [],
        "predicateType": "urn:whence:training:1",
        "predicate": training,
    }
    return seal(STATEMENT_TYPE, json.dumps(statement).encode(), signer)


def follow(training: bytes, data: bytes | None = None) -> Report:
    """Return the report of a bundle of SERVER and a training of TRAINER."""
    origin = Origin(training, [TRAINER.public.pem])
    return verify_bundle(data or make_bundle(SERVER), [SERVER.public.pem], origin)


def test_training_names_the_key_that_signed_it() -> None:
    report = follow(make_training(TRAINER))
    assert report.verified, report.checks
    assert report.checks[-1].name == "training"
    assert f"signed by key {TRAINER.public.key_id[:16]}" in report.checks[-1].detail


def test_server_signs_no_training_and_trainer_no_generation() -> None:
    assert find_fault(follow(make_training(SERVER))).name == "training"
    fault = find_fault(follow(make_training(TRAINER), make_bundle(TRAINER)))
    assert fault.name == "signature"


def make_told(teller: str) -> bytes:
    """Return the bundle of tokens that another process or engine told."""
    started = make_started()
    started.observation.SetInParent()
    if teller == "upstream":
        started.upstream.kind = "vllm"
    else:
        started.recorded.library = "transformers"
    entries = make_entries(started=started)
    return spell(sign(entries, make_finished(), SERVER), entries)


@pytest.mark.parametrize("teller", ["upstream", "transformers"])
def test_told_tokens_are_named_and_not_followed_to_a_training(
    teller: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_told(teller)
    (origin,) = [c for c in verify_bundle(data, [SERVER.public.pem]).checks if c.name == "origin"]
    assert origin.passed is None
    assert "the server did not compute it" in origin.detail
    fault = find_fault(follow(make_training(TRAINER), data))
    assert fault.name == "training"
    assert "told by another" in fault.detail
    (tmp_path / "bundle").write_bytes(data)
    (tmp_path / "key").write_text(SERVER.public.pem)
    assert main(["verify-bundle", str(tmp_path / "bundle"), "--key", str(tmp_path / "key")]) == 0
    told = capsys.readouterr().out
    assert "told by another" in told
    assert "grades" in told
    assert ("upstream   " if teller == "upstream" else "told by    transformers") in told


class Rotation:
    """A key, the key that replaced it an hour after START_NS, and their list."""

    def __init__(self) -> None:
        """Make both."""
        self.old, self.new = PrivateKey.generate(), PrivateKey.generate()
        self.listed = [
            make_entry(self.old, now_ns=START_NS),
            make_entry(self.new, self.old, now_ns=START_NS + HOUR_NS, overlap_s=600),
        ]

    def verify(
        self,
        signed_ns: int,
        signer: PrivateKey,
        trusted: PrivateKey,
        *,
        listed: bool,
        **demands: Any,
    ) -> Report:
        """Return the report of a generation that was signed at a time."""
        entries = make_entries()
        statement = sign(entries, make_finished(), signer, clock=lambda: signed_ns)
        data = spell(statement, entries, self.listed if listed else [])
        return verify_bundle(data, [trusted.public.pem], demands=Demands(**demands))


def test_stolen_old_key_counts_for_nothing_if_only_given_keys_are_trusted() -> None:
    keys = Rotation()
    backdated = START_NS + MINUTE_NS
    by_thief = keys.verify(backdated, keys.old, keys.new, listed=True)
    assert "came before the key that you trust" in by_thief.checks[1].detail
    refused = keys.verify(backdated, keys.old, keys.new, listed=True, only_given_keys=True)
    assert find_fault(refused).name == "signature"
    later = START_NS + 2 * HOUR_NS
    assert keys.verify(later, keys.new, keys.new, listed=True, only_given_keys=True).verified
    follower = keys.verify(later, keys.new, keys.old, listed=True)
    assert "follows from the key that you trust" in follower.checks[1].detail


def test_expired_key_is_refused_by_a_saved_list_if_the_bundle_leaves_it_out() -> None:
    keys = Rotation()
    late = START_NS + 99 * HOUR_NS
    refused = keys.verify(late, keys.old, keys.old, listed=False, known_keys=SavedKeys(keys.listed))
    assert "signatures of the key" in find_fault(refused).detail
    for listed in (False, True):
        in_time = START_NS + MINUTE_NS
        assert keys.verify(
            in_time, keys.old, keys.old, listed=listed, known_keys=SavedKeys(keys.listed)
        ).verified


def test_saved_list_shows_that_two_keys_follow_one() -> None:
    keys, thief = Rotation(), PrivateKey.generate()
    by_thief = make_entry(thief, keys.old, now_ns=START_NS)
    entries = make_entries()
    data = spell(sign(entries, make_finished(), thief), entries, [by_thief])
    pem = keys.old.public.pem
    assert verify_bundle(data, [pem]).verified
    report = verify_bundle(data, [pem], demands=Demands(known_keys=SavedKeys(keys.listed)))
    assert "two keys follow one key" in find_fault(report).detail


def test_first_entry_of_a_list_does_not_bound_its_key() -> None:
    key, entries = PrivateKey.generate(), make_entries()
    statement = sign(entries, make_finished(), key, clock=lambda: START_NS)
    later = make_entry(key, now_ns=START_NS + HOUR_NS)
    data = spell(statement, entries, [later])
    assert verify_bundle(data, [key.public.pem]).verified
    # Each of two servers with one key begins a list with it.
    other = [make_entry(key, now_ns=START_NS)]
    assert verify_bundle(
        data, [key.public.pem], demands=Demands(known_keys=SavedKeys(other))
    ).verified


def test_saved_lists_are_read_in_both_forms() -> None:
    entries = Rotation().listed
    encoded = [base64.b64encode(entry).decode() for entry in entries]
    page = json.dumps({"keys": [{"keyId": "x", "entry": entry} for entry in encoded]}, indent=1)
    lines = [format_json(describe_message(proof_pb2.SigningKey(entry=entry))) for entry in entries]
    assert parse_saved_list(page.encode()) == SavedKeys(entries)
    assert parse_saved_list("\n".join(lines).encode()) == SavedKeys(entries)
    assert parse_saved_list(lines[0].encode()) == SavedKeys(entries[:1])


def test_key_that_a_saved_list_calls_stolen_counts_only_before_and_only_if_it_is_given() -> None:
    keys = Rotation()
    since = datetime.fromtimestamp(START_NS / 1e9, UTC) + timedelta(minutes=30)
    saved = SavedKeys(keys.listed, {keys.old.public.key_id: since})
    before, after = START_NS + MINUTE_NS, START_NS + 40 * MINUTE_NS
    given = keys.verify(before, keys.old, keys.old, listed=True, known_keys=saved)
    assert given.verified
    assert "which was stolen later" in given.checks[1].detail
    fault = find_fault(keys.verify(after, keys.old, keys.old, listed=True, known_keys=saved))
    assert f"to {since}" in fault.detail
    # Neither of two keys vouches for the other once it is stolen.
    assert find_fault(keys.verify(before, keys.old, keys.new, listed=True, known_keys=saved))
    stolen_new = SavedKeys(keys.listed, {keys.new.public.key_id: since})
    late = START_NS + 2 * HOUR_NS
    assert keys.verify(late, keys.new, keys.old, listed=True).verified
    assert find_fault(keys.verify(late, keys.new, keys.old, listed=True, known_keys=stolen_new))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[]", b'{"keys": 1}', b'{"keys": []}', b'{"keys":[3]}']
)
def test_files_that_are_no_list_of_keys_are_refused(data: bytes) -> None:
    with pytest.raises(ProofError, match="saved list of keys"):
        parse_saved_list(data)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--training", "{}/key"], "--training needs --training-key"),
        (["--training-key", "{}/key"], "need --training"),
        (["--keys", "{}/key"], "saved list of keys"),
        (["--text", "{}/bytes"], "no text in UTF-8"),
    ],
)
def test_command_says_which_flag_is_missing_or_wrong(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").write_bytes(make_bundle(SERVER))
    (tmp_path / "key").write_text(SERVER.public.pem)
    (tmp_path / "bytes").write_bytes(b"\xff")
    given = ["verify-bundle", str(tmp_path / "bundle"), "--key", str(tmp_path / "key")]
    assert main([*given, *(flag.format(tmp_path) for flag in flags)]) == 2
    assert words in capsys.readouterr().err
