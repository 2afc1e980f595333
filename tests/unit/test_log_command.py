"""`whence log`: what it believes, and what it writes. The server is one that lies."""

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bundles import GENERATION_ID, make_bundle, make_entries, make_finished, sign
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whence.cli import log as log_command
from whence.cli.main import main
from whence.proof.checkpoints import Checkpoint
from whence.proof.log_check import LogTrust
from whence.proof.merkle_tree import hash_leaf
from whence.proof.notes import COSIGNATURE, NoteSigner, SignedNote
from whence_server.proof.signer import PrivateKey

LOG = NoteSigner("example.com/log", Ed25519PrivateKey.from_private_bytes(b"l" * 32))
WITNESS = NoteSigner("example.com/w", Ed25519PrivateKey.from_private_bytes(b"w" * 32), COSIGNATURE)

# A signature more, of a witness that nobody named: the kept note and the newest one differ.
WITNESS_LINE = "\u2014 example.com/other AAAAAAAA\n".encode()


def make_note(root: bytes = b"r" * 32) -> bytes:
    """Return the checkpoint of a log of one entry, which one witness has cosigned."""
    text = Checkpoint("example.com/log", 1, root).format()
    return SignedNote(text, (LOG.sign(text), WITNESS.sign(text, 1_780_000_000))).format()


def serve(monkeypatch: pytest.MonkeyPatch, envelope: bytes) -> None:
    """Have the command ask a server that tells one envelope for every id, and has logged it."""
    note = make_note(hash_leaf(hashlib.sha256(envelope).digest()))
    statement = SimpleNamespace(envelope=envelope)
    got = SimpleNamespace(finished=SimpleNamespace(statement=statement))
    client = SimpleNamespace(
        generations=SimpleNamespace(get=lambda _id: got),
        transparency_log=SimpleNamespace(
            inclusion=lambda _digest: SimpleNamespace(checkpoint=note, leaf_index=0, path=[]),
            checkpoint=lambda: SimpleNamespace(checkpoint=note),
            consistency=lambda _size: SimpleNamespace(checkpoint=note, path=[]),
        ),
    )

    @contextmanager
    def connect(_arguments: object) -> Iterator[Any]:
        yield client

    monkeypatch.setattr(log_command, "connect", connect)


def prove(*given: str, generation_id: str = GENERATION_ID) -> int:
    return main(["log", "prove", generation_id, "--log-key", str(LOG.key), *given])


def test_statement_of_another_generation_and_other_bytes_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = sign(make_entries(), make_finished(), PrivateKey.generate())
    serve(monkeypatch, signed.envelope)
    assert prove() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("ok     entry 0 of 1 in the log example.com/log")
    assert told[1].startswith("-      signature not checked")
    assert prove(generation_id=GENERATION_ID.replace("6", "7")) == 1
    assert "FAULT  the server told a statement about" in capsys.readouterr().out
    serve(monkeypatch, b"anything at all")
    assert prove() == 1
    assert capsys.readouterr().out.startswith("FAULT  ")


def test_statement_is_checked_against_the_keys_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signer, other = PrivateKey.generate(), PrivateKey.generate()
    for name, key in (("signer", signer), ("other", other)):
        (tmp_path / name).write_text(key.public.pem)
    serve(monkeypatch, sign(make_entries(), make_finished(), signer).envelope)
    assert prove("--server-key", str(tmp_path / "signer")) == 0
    assert f"ok     signed by key {signer.public.key_id[:16]}" in capsys.readouterr().out
    assert prove("--server-key", str(tmp_path / "other")) == 1
    assert "no valid signature of a trusted key" in capsys.readouterr().out
    assert prove("--keys", str(tmp_path / "other")) == 2
    assert "--keys needs --server-key" in capsys.readouterr().err


def test_update_replaces_no_bundle_and_keeps_the_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, bundle = tmp_path / "kept", make_bundle(PrivateKey.generate())
    command = ["log", "consistent", str(file), "--update", "--log-key", str(LOG.key)]
    serve(monkeypatch, b"any")
    file.write_bytes(bundle)
    assert main(command) == 2
    assert "is a bundle, which --update would replace" in capsys.readouterr().err
    assert file.read_bytes() == bundle
    newest = make_note(hash_leaf(hashlib.sha256(b"any").digest()))
    file.write_bytes(newest + WITNESS_LINE)
    file.chmod(0o644)
    assert main(command) == 0
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (newest, 0o644)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_witness_that_is_named_twice_has_to_cosign_once() -> None:
    keys = [str(WITNESS.key)] * 2
    assert LogTrust.parse(str(LOG.key), keys).verify(make_note()).checkpoint.size == 1
