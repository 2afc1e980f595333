"""Signing keys of one server: the key that signs now, and the list of all of them."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from whence.proof.envelope import KEY_TYPE
from whence.proof.faults import ProofError
from whence.proof.key_list import MAX_ENTRIES, TYPE, KeyEntry, parse_entry
from whence.proof.times import spell_time
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.key_files import read_private_key, write_private
from whence_server.proof.signer import PrivateKey, Signer, seal

_log = logging.getLogger(__name__)

KEY_NAME, LIST_NAME = "signing-key.pem", "signing-keys.json"
"""Names of the files in the data directory."""
_MAX_LIST_BYTES = 4 << 20
_LOOK_S = 1.0


class Listed(NamedTuple):
    """One key of the list."""

    data: bytes
    """The entry, a DSSE envelope as JSON."""
    entry: KeyEntry


class SigningKeys:
    """The key that signs now, and the list of all keys of this server.

    A rotation replaces the files while a server runs, which notices within a second.

    Args:
        key_path: file of the private key.
        list_path: file of the list.
    """

    def __init__(self, key_path: Path, list_path: Path) -> None:
        self._key_path = key_path
        self._list_path = list_path
        self._looked_s = time.monotonic()
        self._stamp = _stamp(list_path)
        self.listed: Sequence[Listed] = read_list(list_path)
        self.active = self._read_active(self.listed)

    @classmethod
    def open(cls, key_path: Path, list_path: Path) -> "SigningKeys":
        """Open the keys; make a key and its list at the first start.

        Raises:
            ConfigurationError: a file cannot be used, or the key is not the last one of the list.
        """
        finish_rotation(key_path, list_path)
        if not read_list(list_path):
            write_list(list_path, [make_entry(_read_or_make(key_path))])
        return cls(key_path, list_path)

    def choose(self) -> Signer:
        """Return the key to sign with, after a look for a rotation at most once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._look()
        return self.active

    def _look(self) -> None:
        stamp = _stamp(self._list_path)
        if stamp == self._stamp:
            return
        try:
            listed = read_list(self._list_path)
            active = self._read_active(listed)
        except ConfigurationError as error:
            # A rotation is under way, or a file is damaged: the present key is as good as before.
            _log.warning("signing goes on with the present key: %s", error)
            return
        self._stamp, self.listed, self.active = stamp, listed, active
        _log.info("signs with the key %s from now on", self.active.public.key_id)

    def _read_active(self, listed: Sequence[Listed]) -> PrivateKey:
        if not listed:
            raise ConfigurationError(f"{self._list_path}: the list of signing keys is missing")
        try:
            key = read_private_key(self._key_path)
        except FileNotFoundError:
            raise ConfigurationError(
                f"--signing-key {self._key_path}: is missing, and {self._list_path} lists it; "
                "restore it, or move the list away to begin with a new key"
            ) from None
        last = listed[-1].entry.key
        if key.public.key_id != last.key_id:
            raise ConfigurationError(
                f"--signing-key {self._key_path}: has the id {key.public.key_id[:16]}, and the "
                f"last key of {self._list_path} is {last.key_id[:16]}; replace a key by "
                "`whence-server signing-keys rotate`, or move the list away to begin with this one"
            )
        return key


def certify(key_path: Path, list_path: Path, open_root: Callable[[], Signer]) -> None:
    """Begin the list of a server's first start with a key that signs the server's own key.

    Args:
        key_path: file of the server's own private key; made if it is missing.
        list_path: file of the list.
        open_root: opens the key that signs it.

    Raises:
        ConfigurationError: it cannot be opened at the first start, or the list has another.
    """
    listed = read_list(list_path)
    try:
        root = open_root()
        if not listed:
            first = make_entry(root)
            write_list(list_path, [first, make_entry(_read_or_make(key_path), root)])
            return
    except ConfigurationError as error:
        if not listed:
            raise
        # It has signed the server's own key before, and is not needed.
        _log.warning("the server signs without a look at its key service: %s", error)
        return
    if listed[0].entry.key.key_id != root.public.key_id:
        raise ConfigurationError(
            f"{list_path}: begins with the key {listed[0].entry.key.key_id[:16]}, and "
            f"--signing-key names {root.public.key_id[:16]}; move the list and {key_path} away to "
            "begin with it"
        )


def _read_or_make(path: Path) -> PrivateKey:
    try:
        return read_private_key(path)
    except FileNotFoundError:
        key = PrivateKey.generate()
        write_private(path, key.encode())
        _log.info("made the signing key %s, with the id %s", path, key.public.key_id)
        return key


def make_entry(
    key: Signer, previous: Signer | None = None, *, now_ns: int | None = None, overlap_s: float = 0
) -> bytes:
    """Return the list's entry of a key.

    Args:
        key: the key.
        previous: the key before it; None for the first one.
        now_ns: Unix time from which the key signs; None for now.
        overlap_s: seconds for which the key before may still sign.
    """
    now_ns = time.time_ns() if now_ns is None else now_ns
    payload: dict[str, object] = {
        "type": TYPE,
        "publicKey": key.public.pem,
        "notBefore": spell_time(now_ns),
    }
    if previous is None:
        return seal(KEY_TYPE, json.dumps(payload).encode(), key)
    payload["previous"] = {
        "publicKey": previous.public.pem,
        "notAfter": spell_time(now_ns + int(overlap_s * 1e9)),
    }
    return seal(KEY_TYPE, json.dumps(payload).encode(), key, previous)


def rotate(key_path: Path, list_path: Path, overlap_s: float) -> KeyEntry:
    """Replace the signing key by a new one, which the old one signs; return its entry.

    The old private key is overwritten. A crash in between is mended by the next start.

    Raises:
        ConfigurationError: a file cannot be used, or the list is full.
    """
    keys = SigningKeys.open(key_path, list_path)
    if len(keys.listed) >= MAX_ENTRIES:
        raise ConfigurationError(
            f"{list_path}: has {MAX_ENTRIES} keys, as many as a list may have; move it and "
            f"{key_path} away, and give the new key to those who check"
        )
    new = PrivateKey.generate()
    entry = make_entry(new, keys.active, overlap_s=overlap_s)
    write_private(_name_next(key_path), new.encode())
    write_list(list_path, [*(listed.data for listed in keys.listed), entry])
    finish_rotation(key_path, list_path)
    return parse_entry(entry)


def finish_rotation(key_path: Path, list_path: Path) -> None:
    """Put the new key of an interrupted rotation in its place, if the list has it already.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    next_path = _name_next(key_path)
    if not next_path.exists():
        return
    listed, new = read_list(list_path), read_private_key(next_path)
    if listed and listed[-1].entry.key.key_id == new.public.key_id:
        write_private(key_path, new.encode())
    next_path.unlink(missing_ok=True)


def read_list(path: Path) -> list[Listed]:
    """Return the keys of a list's file, oldest first; nothing if there is no file.

    Raises:
        ConfigurationError: it is damaged, or one key does not follow from the one before.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_LIST_BYTES))
        listed = []
        for number, spelled in enumerate(found["entries"]):
            data = spelled.encode()
            listed.append(Listed(data, parse_entry(data, f"entries[{number}]")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ProofError) as error:
        raise ConfigurationError(f"{path}: is no list of signing keys: {error}") from None
    for before, after in pairwise(listed):
        previous = after.entry.previous
        if previous is None or previous.key_id != before.entry.key.key_id:
            raise ConfigurationError(f"{path}: a key does not follow from the one before it")
    return listed


def write_list(path: Path, entries: Sequence[bytes]) -> None:
    """Write a list's file. Raises ConfigurationError if it cannot be written."""
    spelled = {"entries": [data.decode() for data in entries]}
    write_private(path, json.dumps(spelled, indent=1).encode())


def _name_next(key_path: Path) -> Path:
    return key_path.with_name(key_path.name + ".next")


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
