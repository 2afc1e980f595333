"""Signing keys of one server: the key that signs now, and the list of all of them."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from whence.proof.envelope import KEY_TYPE
from whence.proof.faults import ProofError
from whence.proof.key_list import MAX_ENTRIES, TYPE, KeyEntry, parse_entry
from whence.proof.times import spell_time
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.key_files import read_private_key, write_private
from whence_server.proof.key_place import KeyPlace
from whence_server.proof.signer import PrivateKey, Signer, seal
from whence_server.proof.stolen_keys import StolenList, read_stolen, spell_stolen

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

    A rotation replaces the files while a server runs, which looks for one at most once a second,
    whenever it is asked for a key or for the list.

    Args:
        place: files of the key.
    """

    def __init__(self, place: KeyPlace) -> None:
        self._place = place
        self._looked_s = time.monotonic()
        self._stamp = place.read_stamp()
        self.listed: Sequence[Listed] = read_list(place.list)
        self.stolen: Sequence[StolenList] = read_stolen(place.list)
        """Lists that ended with a stolen key."""
        self.active = self._read_active(self.listed)

    @classmethod
    def open(cls, key_path: Path, list_path: Path) -> "SigningKeys":
        """Open the keys; make a key and its list at the first start.

        Args:
            key_path: file of the private key.
            list_path: file of the list in the data directory.

        Raises:
            ConfigurationError: a file cannot be used, or the key is not the last one of the list.
        """
        place = KeyPlace(key_path, list_path)
        with place.lock() as is_locked:
            if is_locked:
                finish_rotation(place)
            return cls.open_whole(place)

    @classmethod
    def open_whole(cls, place: KeyPlace) -> "SigningKeys":
        """Open the keys as `open` does, in a place that no rotation is changing."""
        if not read_list(place.list):
            key = _read_or_make(place.key)
            write_list(place.list, [make_entry(key)], like=place.key)
        return cls(place)

    def choose(self) -> Signer:
        """Return the key to sign with."""
        self._look_if_due()
        return self.active

    def list_keys(self) -> Sequence[Listed]:
        """Return all keys, oldest first; the last one signs now."""
        self._look_if_due()
        return self.listed

    def list_stolen(self) -> Iterator[tuple[Listed, datetime | None]]:
        """Yield the keys of lists that ended with a stolen one, each with the time of the theft."""
        self._look_if_due()
        for one in self.stolen:
            for data, entry in zip(one.entries, one.parse(), strict=True):
                yield Listed(data, entry), one.since if data == one.entries[-1] else None

    def _look_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._look()

    def _look(self) -> None:
        stamp = self._place.read_stamp()
        if stamp == self._stamp:
            return
        try:
            listed, stolen = read_list(self._place.list), read_stolen(self._place.list)
            active = self._read_active(listed)
        except ConfigurationError as error:
            # A rotation is under way, or a file is damaged: the present key is as good as before.
            _log.warning("signing goes on with the present key: %s", error)
            return
        self._stamp, self.listed, self.active = stamp, listed, active
        self.stolen = stolen
        _log.info("signs with the key %s from now on", self.active.public.key_id)

    def _read_active(self, listed: Sequence[Listed]) -> PrivateKey:
        path, list_path = self._place.key, self._place.list
        if not listed:
            raise ConfigurationError(f"{list_path}: the list of signing keys is missing")
        try:
            key = read_private_key(path)
        except FileNotFoundError:
            raise ConfigurationError(
                f"--signing-key {path}: is missing, and {list_path} lists it; "
                "restore it, or move the list away to begin with a new key"
            ) from None
        last = listed[-1].entry.key
        if key.public.key_id != last.key_id:
            raise ConfigurationError(
                f"--signing-key {path}: has the id {key.public.key_id[:16]}, and the "
                f"last key of {list_path} is {last.key_id[:16]}; replace a key by "
                "`whence-server signing-keys rotate`, or move the list away to begin with this one"
            )
        return key


def certify(key_path: Path, list_path: Path, service: str, open_root: Callable[[], Signer]) -> None:
    """Begin the list of a server's first start with a key that signs the server's own key.

    Args:
        key_path: file of the server's own private key; made if it is missing.
        list_path: file of the list.
        service: URI of the key that signs it; the list keeps it.
        open_root: opens that key.

    Raises:
        ConfigurationError: it cannot be opened, and has not begun the list, or another has.
    """
    place = KeyPlace(key_path, list_path)
    with place.lock():
        listed = read_list(list_path)
        try:
            root = open_root()
        except ConfigurationError as error:
            if not listed or read_service(list_path) != service:
                raise
            # It has signed the server's own key before, and is not needed.
            _log.warning("the server signs without a look at its key service: %s", error)
            return
        if not listed:
            entries = [make_entry(root), make_entry(_read_or_make(place.key), root)]
            write_list(list_path, entries, service, like=place.key)
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


def rotate(
    key_path: Path, list_path: Path, overlap_s: float, stolen_since: datetime | None = None
) -> KeyEntry:
    """Replace the signing key by a new one; return its entry.

    The old key signs the new one, unless it was stolen: then the new key begins a new list, so that
    neither key vouches for the other. The old private key is overwritten. A crash in between is
    mended by the next start.

    Args:
        key_path: file of the private key.
        list_path: file of the list in the data directory.
        overlap_s: seconds for which the old key may still sign.
        stolen_since: time from which the old key is known to be stolen; None if it is not.

    Raises:
        ConfigurationError: a file cannot be used, the list is full, or a key service began it and
            its key was stolen.
    """
    place = KeyPlace(key_path, list_path)
    with place.lock():
        finish_rotation(place)
        keys = SigningKeys.open_whole(place)
        service, stolen = read_service(place.list), list(keys.stolen)
        new, entries = PrivateKey.generate(), [listed.data for listed in keys.listed]
        if stolen_since is not None:
            _check_own(place, service)
            stolen.append(StolenList(entries, stolen_since))
            entry, listed = make_entry(new), []
        else:
            _check_room(place, len(entries))
            entry, listed = make_entry(new, keys.active, overlap_s=overlap_s), entries
        write_private(place.next_key, new.encode(), like=place.key)
        write_list(place.rotated_list, [*listed, entry], service, like=place.key, stolen=stolen)
        finish_rotation(place)
    return parse_entry(entry)


def _check_room(place: KeyPlace, num_keys: int) -> None:
    if num_keys >= MAX_ENTRIES:
        raise ConfigurationError(
            f"{place.list}: has {MAX_ENTRIES} keys, as many as a list may have; move it and "
            f"{place.key_path} away, and give the new key to those who check"
        )


def _check_own(place: KeyPlace, service: str | None) -> None:
    if service is not None:
        raise ConfigurationError(
            f"{place.list}: was begun by the key service {service}, which alone can begin another "
            f"list; move it and {place.key_path} away, and start the server with --signing-key "
            f"{service}"
        )


def finish_rotation(place: KeyPlace) -> None:
    """Put the new key of an interrupted rotation in its place, if the list has it already.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    try:
        new = read_private_key(place.next_key)
    except FileNotFoundError:
        return
    listed = read_list(place.list)
    if listed and listed[-1].entry.key.key_id == new.public.key_id:
        write_private(place.key, new.encode())
    place.next_key.unlink(missing_ok=True)


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
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ProofError,
        RecursionError,
    ) as error:
        raise ConfigurationError(f"{path}: is no list of signing keys: {error}") from None
    for before, after in pairwise(listed):
        previous = after.entry.previous
        if previous is None or previous.key_id != before.entry.key.key_id:
            raise ConfigurationError(f"{path}: a key does not follow from the one before it")
    return listed


def read_service(path: Path) -> str | None:
    """Return the URI of the key service that has begun a list; None for a list without one."""
    try:
        found = json.loads(path.read_bytes()).get("service")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def write_list(
    path: Path,
    entries: Sequence[bytes],
    service: str | None = None,
    like: Path | None = None,
    stolen: Sequence[StolenList] = (),
) -> None:
    """Write a list's file.

    Args:
        path: the file.
        entries: the keys' entries, oldest first.
        service: URI of the key service that has begun the list.
        like: file whose owner and mode a new list takes over.
        stolen: earlier lists that ended with a stolen key.

    Raises:
        ConfigurationError: it cannot be written.
    """
    spelled: dict[str, object] = {"entries": [data.decode() for data in entries]}
    if service is not None:
        spelled["service"] = service
    if stolen:
        spelled["stolen"] = spell_stolen(stolen)
    write_private(path, json.dumps(spelled, indent=1).encode(), like)
