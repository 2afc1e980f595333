"""Signed notes and checkpoints: formats of C2SP, and everything that is no note."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whence.proof.checkpoints import Checkpoint, parse_size, verify_checkpoint
from whence.proof.notes import (
    COSIGNATURE,
    ED25519,
    MAX_NOTE_BYTES,
    NoteError,
    NoteSigner,
    SignedNote,
    VerifierKey,
)

# The example of the package golang.org/x/mod/sumdb/note.
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6"
    "KE6RyyBwJnAM=\n"
)


def make_signer(name: str, algorithm: int = 1, seed: int = 1) -> NoteSigner:
    private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return NoteSigner(name, private, algorithm)


LOG = make_signer("example.com/log")
WITNESS = make_signer("example.com/w", COSIGNATURE, 2)
ROOT = hashlib.sha256(b"root").digest()


def make_note(*signers: NoteSigner, origin: str = "example.com/log", size: int = 7) -> bytes:
    text = Checkpoint(origin, size, ROOT).format()
    return SignedNote(text, tuple(it.sign(text, 1_700_000_000) for it in signers)).format()


def test_a_note_that_go_signed_is_verified():
    key = VerifierKey.parse(GO_KEY)
    assert str(key) == GO_KEY
    note = SignedNote.parse(GO_NOTE.encode())
    assert note.find_signers([key]) == {key: 0}
    assert note.format() == GO_NOTE.encode()


def test_a_checkpoint_is_verified_with_its_cosignatures():
    verified = verify_checkpoint(make_note(LOG, WITNESS), LOG.key, [WITNESS.key], 1)
    assert verified.checkpoint == Checkpoint("example.com/log", 7, ROOT)
    assert verified.witnesses == {"example.com/w": 1_700_000_000}
    assert verify_checkpoint(make_note(LOG, WITNESS), LOG.key).witnesses == {}


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (make_note(WITNESS), "no signature of the log's key"),
        (make_note(LOG, origin="example.com/other"), "'example.com/other'"),
        (make_note(LOG, LOG), "2 signatures"),
        (make_note(make_signer("example.com/log", seed=9)), "no signature of the log's key"),
        (make_note(LOG).replace(b"\n7\n", b"\n8\n"), "is wrong"),
        (make_note(LOG).replace(b"\n7\n", b"\n07\n"), "no size"),
        (make_note(LOG).replace(b"\n7\n", b"\n-7\n"), "no size"),
        (make_note(LOG).replace(b"\n7\n", b"\n99999999999999999999999999\n"), "no size"),
        (make_note(LOG)[:-1], "end it"),
        (make_note(LOG).replace(b"\n\n", b"\n"), "no signatures"),
        (b"", "no signatures"),
        (b"\xff\xfe\n\n", "UTF-8"),
        (b"a\tb\n\n", "control character"),
        (b"x" * (MAX_NOTE_BYTES + 1), "at most"),
        (make_note(LOG) + "— b b\n".encode() * 200, "more than"),
        (make_note(LOG) + b"no signature\n", "no signature line"),
    ],
)
def test_what_is_no_checkpoint_of_the_log_is_refused_with_its_fault(raw, what):
    with pytest.raises(NoteError, match=what):
        verify_checkpoint(raw, LOG.key)


def test_a_missing_or_wrong_cosignature_is_refused():
    with pytest.raises(NoteError, match="0 of the named witnesses"):
        verify_checkpoint(make_note(LOG), LOG.key, [WITNESS.key], 1)
    stranger = make_signer("example.com/w", COSIGNATURE, 3)
    with pytest.raises(NoteError, match="0 of the named witnesses"):
        verify_checkpoint(make_note(LOG, stranger), LOG.key, [WITNESS.key], 1)
    note = SignedNote.parse(make_note(LOG, WITNESS))
    late = note.signatures[1]._replace(data=bytes(8) + note.signatures[1].data[8:])
    with pytest.raises(NoteError, match=r"example\.com/w is wrong"):
        verify_checkpoint(
            SignedNote(note.text, (note.signatures[0], late)).format(), LOG.key, [WITNESS.key], 1
        )
    # The same key under two names is one witness.
    twin = make_signer("example.com/twin", COSIGNATURE, 2)
    with pytest.raises(NoteError, match="and 2 must"):
        verify_checkpoint(make_note(LOG, WITNESS, twin), LOG.key, [WITNESS.key, twin.key], 2)


def test_a_plain_signature_of_a_witness_is_no_cosignature():
    text = SignedNote.parse(make_note(LOG)).text
    plain = make_signer("example.com/w", seed=2).sign(text)._replace(key_id=WITNESS.key.key_id)
    raw = SignedNote(text, (LOG.sign(text), plain)).format()
    with pytest.raises(NoteError, match="64 bytes, expected 72"):
        verify_checkpoint(raw, LOG.key, [WITNESS.key], 1)


def test_keys_of_the_wrong_kind_are_refused():
    raw = make_note(LOG, WITNESS)
    with pytest.raises(NoteError, match="is one of a witness, not of a log"):
        verify_checkpoint(raw, VerifierKey(LOG.key.name, COSIGNATURE, LOG.key.public))
    with pytest.raises(NoteError, match="is one of a log, not of a witness"):
        verify_checkpoint(raw, LOG.key, [VerifierKey("example.com/w", ED25519, bytes(32))], 1)
    itself = VerifierKey("example.com/w", COSIGNATURE, LOG.key.public)
    with pytest.raises(NoteError, match="has the key of the log"):
        verify_checkpoint(raw, LOG.key, [itself], 1)
    # A witness that is named twice is one.
    assert verify_checkpoint(raw, LOG.key, [WITNESS.key, WITNESS.key], 1).witnesses
    with pytest.raises(NoteError, match="1 of the named witnesses"):
        verify_checkpoint(raw, LOG.key, [WITNESS.key, WITNESS.key], 2)


def test_every_flipped_byte_of_a_checkpoint_is_refused_or_changes_nothing():
    raw = make_note(LOG, WITNESS)
    wanted = verify_checkpoint(raw, LOG.key, [WITNESS.key], 1)
    for place in range(len(raw)):
        for bit in (1, 0x20, 0x80):
            flipped = bytearray(raw)
            flipped[place] ^= bit
            try:
                found = verify_checkpoint(bytes(flipped), LOG.key, [WITNESS.key], 1)
            except NoteError:
                continue
            assert found == wanted, place


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+",
        GO_KEY.replace("c74f20a3", "c74f20a4"),
        GO_KEY.replace("PeterNeumann", "Peter Neumann"),
        "x+" + "00" * 4 + "+" + base64.b64encode(b"\2" + bytes(32)).decode(),
        "x+zz+AAAA",
    ],
)
def test_what_is_no_verifier_key_is_refused(text):
    with pytest.raises(NoteError):
        VerifierKey.parse(text)


@pytest.mark.parametrize("text", ["", "+1", "1_0", "٣", " 1", "00", "1" * 5000])
def test_sizes_have_one_spelling(text):
    with pytest.raises(NoteError):
        parse_size(text)
