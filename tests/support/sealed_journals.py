"""Keys for journals that are encrypted, and an independent reading of what they encrypt."""

import base64
import hashlib
import hmac
from pathlib import Path

import apsw
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from folders import read_folder

from whence.v1.sealing_pb2 import SealedFinish, SealedStart
from whence_server.domain.journal_url import JournalUrl
from whence_server.domain.key_sources import KeyScheme, KeySource
from whence_server.journal.sealing.content_check import KeysToVerify
from whence_server.journal.sealing.key_place import open_keys as open_database
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.opening import SealingOptions

MASTER = hashlib.sha256(b"a master key of the tests").digest()
OTHER_MASTER = hashlib.sha256(b"another master key of the tests").digest()


def write_keys(path: Path, *masters: bytes) -> Path:
    """Write a file of master keys, the newest first."""
    path.write_text("".join(f"{base64.b64encode(master).decode()}\n" for master in masters))
    path.chmod(0o600)
    return path


def make_options(key_file: Path, database: Path | JournalUrl | None = None) -> SealingOptions:
    """Return options with the keys of a file, which gets one if it is missing."""
    if not key_file.exists():
        write_keys(key_file, MASTER)
    return SealingOptions(KeySource(KeyScheme.FILE, str(key_file)), database)


def open_keys(data_dir: Path | JournalUrl, key_file: Path) -> KeysToVerify:
    """Return the keys with which a journal is verified."""
    masters = Masters(KeySource(KeyScheme.FILE, str(key_file)), {})
    place = data_dir / "keys.db" if isinstance(data_dir, Path) else data_dir
    return KeysToVerify(open_database(place, read_only=True), masters)


def read_files(directory: Path) -> bytes:
    """Return every byte of every file below a directory."""
    return b"".join(read_folder(directory).values())


class Decryption:
    """Decryption of a journal by the words of sealing.proto and docs/encryption.md alone."""

    def __init__(self, journal: Path, keys: Path, master: bytes = MASTER) -> None:
        wrapping = AESGCM(hmac.digest(master, b"whence master key wrapping 1", "sha256"))
        self._keys = {}
        database = apsw.Connection(str(keys), flags=apsw.SQLITE_OPEN_READONLY)
        for generation_id, key_id, wrapped in database.execute(
            "SELECT generation_id, key_id, wrapped FROM data_keys"
        ):
            context = b"whence data key 1\0" + key_id + generation_id.encode()
            key = wrapping.decrypt(wrapped[:12], wrapped[12:], context)
            self._keys[generation_id] = (key_id, key)
        database.close()
        self.messages: dict[str, list[bytes]] = {}
        self.nonces: list[tuple[bytes, bytes]] = []
        """Each key with each nonce that was used with it."""
        self._read(journal)

    def _read(self, journal: Path) -> None:
        database = apsw.Connection(str(journal))
        ids: dict[int, str] = {}
        for position, generation, offset, kind, payload in database.execute(
            'SELECT position, generation, "offset", kind, payload FROM entries '
            "WHERE payload IS NOT NULL AND kind NOT IN (6, 7) ORDER BY position"
        ):
            if kind == 1:
                start = SealedStart.FromString(payload)
                ids[generation] = start.generation_id
                sealed = start.message
                self._note(start.generation_id, start.index)
            elif kind == 5:
                assert payload[:2] == b"\0\2"
                finish = SealedFinish.FromString(payload[2:])
                sealed = finish.message
                self._note(ids[generation], finish.preview)
            else:
                assert payload[:2] == b"\0\1"
                sealed = payload[2:]
            self._open(ids[generation], position, offset, kind, sealed)
        database.close()

    def _open(self, name: str, position: int, offset: int, kind: int, sealed: bytes) -> None:
        if name not in self._keys:
            return
        self._note(name, sealed)
        place = position.to_bytes(8, "big") + offset.to_bytes(8, "big") + bytes([kind])
        bound = b"whence sealed 1\0\1" + place + name.encode()
        message = AESGCM(self._keys[name][1]).decrypt(sealed[:12], sealed[12:], bound)
        self.messages.setdefault(name, []).append(message)

    def _note(self, name: str, sealed: bytes) -> None:
        if name in self._keys:
            self.nonces.append((self._keys[name][1], sealed[:12]))
