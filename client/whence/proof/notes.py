"""Signed notes (C2SP signed-note): a text and signatures of keys that have names.

Two kinds of signature are known: Ed25519 over the text, as logs sign, and Ed25519 cosignatures with
a time (C2SP tlog-cosignature), as witnesses sign. A signature of an unknown key proves nothing and
is passed over; one of a known key that is wrong makes the note invalid.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Self

from whence.proof.faults import FormatError, ProofError
from whence.proof.public_key import MISSING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ED25519, COSIGNATURE = 1, 4
"""Algorithm bytes of a log's key and of a witness's key."""
MAX_NOTE_BYTES = 64 << 10
MAX_SIGNATURES = 100
_KEY_BYTES, _SIGNATURE_BYTES, _ID_BYTES, _TIME_BYTES = 32, 64, 4, 8
_DASH = "— "


class NoteError(FormatError, ValueError):
    """A note or a key is malformed, or a signature is wrong; the message says which."""


class Signature(NamedTuple):
    """One signature line of a note."""

    name: str
    key_id: bytes
    """First four bytes of the hash over name, algorithm and key."""
    data: bytes
    """The signature without the key's id."""

    def format(self) -> str:
        """Return the line, without the line break."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.data).decode()}"


class VerifierKey(NamedTuple):
    """A named public key, which the form "NAME+ID+BASE64" tells.

    Attributes:
        name: name of the log or of the witness; without spaces and plus signs.
        algorithm: `ED25519` or `COSIGNATURE`.
        public: Ed25519 public key, 32 bytes.
    """

    name: str
    algorithm: int
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a key from its text.

        Raises:
            NoteError: it is malformed, its id is not that of its key, or the algorithm is unknown.
        """
        name, _, rest = text.strip().partition("+")
        id_text, _, key_text = rest.partition("+")
        try:
            key_id, key = bytes.fromhex(id_text), base64.b64decode(key_text, validate=True)
        except ValueError:
            key_id = key = b""
        if len(key_id) != _ID_BYTES or not key:
            raise NoteError(f"{text[:120]!r} is no verifier key: expected NAME+ID+BASE64")
        check_name(name)
        if len(key) != 1 + _KEY_BYTES or key[0] not in {ED25519, COSIGNATURE}:
            raise NoteError(
                f"the key of {name} is of an unknown kind: expected Ed25519 (1) or cosignature (4)"
            )
        found = cls(name, key[0], key[1:])
        if found.key_id != key_id:
            raise NoteError(f"the id in the key of {name} is not that of its name and bytes")
        return found

    @property
    def key_id(self) -> bytes:
        """First four bytes of the hash over name, algorithm and key."""
        data = self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public
        return hashlib.sha256(data).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        """Return the key as text."""
        key = base64.b64encode(bytes([self.algorithm]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{key}"

    def is_signer_of(self, signature: Signature) -> bool:
        """Return whether a signature names this key."""
        return signature.name == self.name and signature.key_id == self.key_id

    def verify(self, text: str, signature: Signature) -> int:
        """Verify a signature over a note's text.

        Returns:
            The time of a cosignature in Unix seconds; 0 for a log's signature.

        Raises:
            NoteError: the signature is wrong.
            ProofError: the package `cryptography` is missing.
        """
        signed_at, message, data = 0, text.encode(), signature.data
        if self.algorithm == COSIGNATURE:
            # A signature over the text alone is none of a witness, even if its key made it.
            if len(data) != _TIME_BYTES + _SIGNATURE_BYTES:
                raise NoteError(
                    f"the cosignature of {self.name} has {len(data)} bytes, expected "
                    f"{_TIME_BYTES + _SIGNATURE_BYTES}: a time and a signature"
                )
            signed_at = int.from_bytes(data[:_TIME_BYTES], "big")
            message, data = make_cosigned_message(text, signed_at), data[_TIME_BYTES:]
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError:
            raise ProofError(MISSING) from None
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(data, message)
        except (InvalidSignature, ValueError):
            raise NoteError(f"the signature of {self.name} is wrong") from None
        return signed_at


class NoteSigner:
    """Ed25519 key with a name, which signs notes.

    Args:
        name: name of the log or of the witness.
        private: the private key.
        algorithm: `ED25519` for a log, `COSIGNATURE` for a witness.

    Attributes:
        key: the public half.
    """

    def __init__(self, name: str, private: "Ed25519PrivateKey", algorithm: int = ED25519) -> None:
        check_name(name)
        self._private = private
        self.key = VerifierKey(name, algorithm, private.public_key().public_bytes_raw())

    def sign(self, text: str, time_s: int = 0) -> Signature:
        """Sign a note's text.

        Args:
            text: the text, with its last line break.
            time_s: time of a cosignature in Unix seconds.
        """
        if self.key.algorithm == COSIGNATURE:
            signed = self._private.sign(make_cosigned_message(text, time_s))
            data = time_s.to_bytes(_TIME_BYTES, "big") + signed
        else:
            data = self._private.sign(text.encode())
        return Signature(self.key.name, self.key.key_id, data)


class SignedNote(NamedTuple):
    """A text with its signatures.

    Attributes:
        text: the text, with its last line break.
        signatures: the signatures, in their order.
    """

    text: str
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a note.

        Raises:
            NoteError: it is malformed or larger than a note may be.
        """
        if len(raw) > MAX_NOTE_BYTES:
            raise NoteError(f"the note has {len(raw)} bytes; at most {MAX_NOTE_BYTES} are read")
        try:
            whole = raw.decode()
        except UnicodeDecodeError:
            raise NoteError("the note is not UTF-8") from None
        if any(ord(character) < ord(" ") and character != "\n" for character in whole):
            raise NoteError("the note has a control character")
        text, found, lines = whole.rpartition("\n\n")
        if not found or not lines.endswith("\n"):
            raise NoteError(
                "the note has no signatures: an empty line and lines of them must end it"
            )
        return cls(text + "\n", parse_signatures(lines))

    def format(self) -> bytes:
        """Return the note's bytes."""
        lines = "".join(signature.format() + "\n" for signature in self.signatures)
        return f"{self.text}\n{lines}".encode()

    def find_signers(self, keys: Iterable[VerifierKey]) -> dict[VerifierKey, int]:
        """Verify the signatures of known keys.

        Returns:
            The keys that have signed, each with the time of its cosignature or 0.

        Raises:
            NoteError: a signature of a known key is wrong, or one key has two signatures.
        """
        signers: dict[VerifierKey, int] = {}
        for key in keys:
            given = [one for one in self.signatures if key.is_signer_of(one)]
            if len(given) > 1:
                raise NoteError(f"the note has {len(given)} signatures of {key.name}'s key")
            if given:
                signers[key] = key.verify(self.text, given[0])
        return signers


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Read signature lines, each with its line break.

    Raises:
        NoteError: a line is malformed, or there are too many.
    """
    if lines.count("\n") > MAX_SIGNATURES:
        raise NoteError(f"the note has more than {MAX_SIGNATURES} signatures")
    if not lines.endswith("\n"):
        raise NoteError("the last signature has no line break")
    return tuple(map(_parse_signature, lines[:-1].split("\n")))


def _parse_signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not line.startswith(_DASH) or len(data) <= _ID_BYTES:
        raise NoteError(f"{line[:80]!r} is no signature line: expected a dash, NAME and BASE64")
    check_name(name)
    return Signature(name, data[:_ID_BYTES], data[_ID_BYTES:])


def check_name(name: str) -> None:
    """Refuse a name that cannot be that of a key.

    Raises:
        NoteError: it is empty, or has a space or a plus sign.
    """
    if not name or "+" in name or any(it.isspace() or not it.isprintable() for it in name):
        raise NoteError(f"{name[:80]!r} cannot be the name of a key: it has a space or a plus sign")


def make_cosigned_message(text: str, time_s: int) -> bytes:
    """Return the bytes that a cosignature covers (C2SP tlog-cosignature, version 1)."""
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()
