"""A log that is known from earlier: bundles and commands prove that the newest one continues it."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transparency import SIGNER, grow, make_options, open_log

from whence.proof.checkpoints import Checkpoint
from whence.proof.faults import ProofError
from whence.proof.log_check import LogTrust
from whence.proof.log_growth import check_growth, find_note, read_known
from whence.proof.notes import COSIGNATURE, NoteSigner, SignedNote, VerifierKey
from whence.proof.verification import LogKeys, verify_bundle
from whence_server.domain.errors import (
    BundleTooLargeError,
    InvalidRequestError,
    NoTransparencyLogError,
)
from whence_server.journal.journal import Journal
from whence_server.proof.log.log import TransparencyLog
from whence_server.rpc import bundles
from whence_server.rpc.bundles import Disclosure, spell_bundle

LAST = "00000000-0000-4000-9000-000000000009"


async def export(journal: Journal, log: TransparencyLog | None, known: int = 0) -> bytes:
    pieces = spell_bundle(journal, LAST, [], Disclosure(), log, known_log_size=known)
    return "".join([piece async for piece in pieces]).encode()


def check(bundle: bytes, vkey: str, known: bytes) -> str:
    """Return what the check of the log found; with a fault, "FAULT " and its words."""
    report = verify_bundle(bundle, [SIGNER.public.pem], log=LogKeys(vkey, known=known))
    (found,) = [check for check in report.checks if check.name == "log"]
    return found.detail if found.passed else f"FAULT {found.detail}"


async def test_a_bundle_proves_that_its_log_continues_a_kept_checkpoint(tmp_path: Path) -> None:
    async with open_log(tmp_path) as (journal, log):
        vkey = log.verifier_key
        await grow(journal, log, *range(1, 6))
        kept = await log.read_checkpoint()
        await grow(journal, log, *range(6, 10))
        newest = await log.read_checkpoint()
        bundle = await export(journal, log, 5)
        assert check(bundle, vkey, kept).endswith(
            "; it continues the log of 5 entries that you know"
        )
        # The bundle's own checkpoint, and a bundle as the file that was kept.
        for same in (newest, bundle):
            assert "continues the log of 9 entries" in check(bundle, vkey, same)
        without = await export(journal, log)
        assert "consistency" not in json.loads(without)["log"]
        assert "export it with --known" in check(without, vkey, kept)
        await grow(journal, log, 10)
        later = await log.read_checkpoint()
        assert check(bundle, vkey, later).startswith(
            "FAULT the log has 9 entries, and you know a checkpoint with 10"
        )
        with pytest.raises(InvalidRequestError, match=r"known_log_size.*at most 10"):
            await export(journal, log, 11)
        with pytest.raises(NoTransparencyLogError):
            await export(journal, None, 1)


async def test_a_log_that_was_written_anew_does_not_continue_the_kept_one(tmp_path: Path) -> None:
    """The operator has every key, and makes the whole log again with other entries."""
    (tmp_path / "first").mkdir()
    async with open_log(tmp_path / "first") as (journal, log):
        options = make_options(tmp_path / "first", origin=log.origin)
        await grow(journal, log, *range(1, 6))
        kept = await log.read_checkpoint()
    async with open_log(tmp_path, options, tmp_path / "again") as (journal, log):
        await grow(journal, log, *range(2, 10))
        bundle = await export(journal, log, 5)
        found = check(bundle, log.verifier_key, kept)
        assert found.startswith("FAULT the log with 8 entries does not continue the one with 5")


async def test_every_change_of_a_proof_of_consistency_is_refused(tmp_path: Path) -> None:
    async with open_log(tmp_path) as (journal, log):
        vkey = log.verifier_key
        await grow(journal, log, *range(1, 6))
        kept = await log.read_checkpoint()
        await grow(journal, log, *range(6, 10))
        bundle = json.loads(await export(journal, log, 5))
    proof = bundle["log"]["consistency"]
    assert proof["size"] == 5
    for changed, words in (
        ({**proof, "path": proof["path"][:-1]}, "does not continue"),
        ({**proof, "path": proof["path"][::-1]}, "does not continue"),
        ({**proof, "size": 4}, "you know one of 5"),
        ({**proof, "path": ["AAAA"]}, "log.consistency.path[0] is not the base64 of 32 bytes"),
        ({**proof, "path": proof["path"] * 40}, "no tree is as high"),
        ({**proof, "more": 1}, "unknown field 'more'"),
        ({"size": 5}, "path is missing"),
    ):
        bundle["log"]["consistency"] = changed
        data = json.dumps(bundle).encode()
        assert words in check(data, vkey, kept)


async def test_a_kept_file_that_is_no_checkpoint_of_the_log_is_refused(tmp_path: Path) -> None:
    async with open_log(tmp_path) as (journal, log):
        key = VerifierKey.parse(log.verifier_key)
        await grow(journal, log, 9)
        note = await log.read_checkpoint()
        unlogged = await export(journal, None)
    assert read_known(note, key).size == 1
    with pytest.raises(ProofError, match="the bundle has no checkpoint"):
        find_note(unlogged)
    other = NoteSigner(key.name, Ed25519PrivateKey.generate()).key
    for data, words in ((b"nothing\n", "no signatures"), (note, "no signature of the log's key")):
        with pytest.raises(ProofError, match=f"the checkpoint that you kept: .*{words}"):
            read_known(data, other)


def test_a_checkpoint_continues_itself_and_an_empty_log() -> None:
    full = Checkpoint("log", 3, b"r" * 32)
    assert "continues the log of 3" in check_growth(full, full, [])
    with pytest.raises(ProofError, match="does not continue"):
        check_growth(full, Checkpoint("log", 3, b"s" * 32), [])


def test_a_quorum_of_the_named_witnesses_suffices() -> None:
    log = NoteSigner("log", Ed25519PrivateKey.generate())
    witnesses = [
        NoteSigner(f"w{number}", Ed25519PrivateKey.generate(), COSIGNATURE) for number in range(3)
    ]
    text = Checkpoint("log", 3, b"r" * 32).format()
    note = SignedNote(text, (log.sign(text), *(it.sign(text, 7) for it in witnesses[:2]))).format()
    names = [str(witness.key) for witness in witnesses]
    assert LogTrust.parse(str(log.key), names, 2).verify(note).witnesses == {"w0": 7, "w1": 7}
    for quorum in (None, 3):
        with pytest.raises(ProofError, match=r"2 of the named witnesses have cosigned.* 3 must"):
            LogTrust.parse(str(log.key), names, quorum).verify(note)
    # One witness that is named twice is one.
    with pytest.raises(ProofError, match="2 witnesses must have cosigned, and only 1"):
        LogTrust.parse(str(log.key), names[:1] * 2, 2)


async def test_a_bundle_that_nobody_would_read_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_log(tmp_path) as (journal, log):
        await grow(journal, log, 9)
        whole = await export(journal, log)
        num_leaves = len(json.loads(whole)["leaves"])
        monkeypatch.setattr(bundles, "MAX_LEAVES", num_leaves)
        assert await export(journal, log) == whole
        monkeypatch.setattr(bundles, "MAX_LEAVES", num_leaves - 1)
        with pytest.raises(BundleTooLargeError, match=f"{num_leaves} entries.*whence verify"):
            await export(journal, log)
        monkeypatch.undo()
        monkeypatch.setattr(bundles, "MAX_BYTES", bundles.SPARE_BYTES + len(whole) // 2)
        with pytest.raises(BundleTooLargeError, match="hide its prompt or its text"):
            await export(journal, log)
