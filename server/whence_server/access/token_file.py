"""File of the callers that the server knows: tokens by their SHA-256, and certificates by name.

Each line is a JSON object; lines that are empty or begin with "#" are passed over:

    {"id": "alice", "sha256": "2bb8...", "scopes": ["generate"], "expires": "2027-01-31T00:00:00Z"}
    {"id": "billing", "certificate": "URI:spiffe://example.org/billing", "scopes": ["read"]}
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whence_server.access.changes import take_fingerprint
from whence_server.access.file_permissions import check_writers
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.identity import Identity, Scope

_log = logging.getLogger(__name__)

FLAG = "--auth-tokens"
_FIELDS = {"id", "sha256", "certificate", "scopes", "expires"}
ID = re.compile(r"[!-~]{1,128}")
_CERTIFICATE = re.compile(r"(?:DNS|URI|EMAIL|IP|CN):.+")
_RETRY_S = 1.0
"""Time after which a changed file that could not be used is read again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the file.

    Attributes:
        identity: the caller.
        sha256: SHA-256 of its token, in lower-case hex; "" for a certificate.
        certificate: name in its certificate; "" for a token.
        expires: time from which it is not accepted; None for never.
    """

    identity: Identity
    sha256: str = ""
    certificate: str = ""
    expires: datetime | None = None

    def has_expired(self) -> bool:
        """Return whether the entry is not accepted any more."""
        return self.expires is not None and datetime.now(UTC) >= self.expires


@dataclass(frozen=True, slots=True)
class _Callers:
    """Entries of one version of the file."""

    by_digest: dict[bytes, Entry] = field(default_factory=dict)
    by_certificate: dict[str, Entry] = field(default_factory=dict)


class TokenFile:
    """The known callers, read again when the file changes.

    A file that has changed and cannot be used is tried again: it may have revoked a token, and may
    be readable a moment later as it is, for example after too many open files.

    Args:
        path: path of the file.
        clock: monotonic seconds.

    Attributes:
        on_change: called with the path after other callers were read.

    Raises:
        ConfigurationError: the file cannot be read, or a line is malformed.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self.on_change: Callable[[str], None] = lambda _: None
        self._retry_at_s: float | None = None
        """Time of the next try to read the file; None while it has been read."""
        # Look-ups compare keyed digests: their time tells nothing about a stored one.
        self._key = secrets.token_bytes(32)
        self._seen = take_fingerprint(path)
        self._callers = self._read()

    def find_token(self, token: str) -> Entry | None:
        """Return the entry of a token; None if no line has it."""
        self._refresh()
        digest = hashlib.sha256(token.encode(errors="replace")).hexdigest()
        found = self._callers.by_digest.get(self._make_key(digest))
        if found is None or not hmac.compare_digest(found.sha256, digest):
            return None
        return found

    def find_certificate(self, names: tuple[str, ...]) -> Entry | None:
        """Return the entry of the first name that a line has; None if no line has one."""
        self._refresh()
        found = (self._callers.by_certificate.get(name) for name in names)
        return next((entry for entry in found if entry is not None), None)

    def find_again(self, entry: Entry) -> Entry | None:
        """Return the present entry of the same token or certificate; None if its line is gone."""
        self._refresh()
        if entry.sha256:
            return self._callers.by_digest.get(self._make_key(entry.sha256))
        return self._callers.by_certificate.get(entry.certificate)

    def _refresh(self) -> None:
        seen = take_fingerprint(self._path)
        has_changed, self._seen = seen != self._seen, seen
        is_due = self._retry_at_s is not None and self._clock() >= self._retry_at_s
        if not (has_changed or is_due):
            return
        try:
            self._callers = self._read()
        except ConfigurationError as error:
            self._retry_at_s = self._clock() + _RETRY_S
            if has_changed:
                _log.error("%s; the callers of before stay valid", error)
        else:
            self._retry_at_s = None
            _log.info("the callers were read again from %s", self._path)
            self.on_change(str(self._path))

    def _read(self) -> _Callers:
        callers = _Callers()
        for entry in read_token_file(self._path):
            if entry.sha256:
                callers.by_digest[self._make_key(entry.sha256)] = entry
            else:
                callers.by_certificate[entry.certificate] = entry
        return callers

    def _make_key(self, digest: str) -> bytes:
        return hashlib.blake2b(digest.encode(), key=self._key).digest()


def read_token_file(path: Path) -> list[Entry]:
    """Read and check every line.

    Raises:
        ConfigurationError: the file cannot be read, others can write to it, or a line is malformed.
    """
    try:
        check_writers(FLAG, path)
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{FLAG} {path}: cannot be read ({why})") from None
    entries: list[Entry] = []
    known: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = parse_entry(line)
        except ValueError as error:
            raise ConfigurationError(f"{FLAG} {path}, line {number}: {error}") from None
        name = entry.sha256 or entry.certificate
        if name in known:
            raise ConfigurationError(
                f"{FLAG} {path}, line {number}: an earlier line has the same token or certificate"
            )
        known.add(name)
        entries.append(entry)
    return entries


def parse_entry(line: str) -> Entry:
    """Parse one line.

    Raises:
        ValueError: it is malformed; the message says what is expected, and quotes no digest.
    """
    found = _parse_object(line)
    if unknown := sorted(found.keys() - _FIELDS):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    name = found.get("id")
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise ValueError("id: expected 1 to 128 printable ASCII characters without spaces")
    sha256, certificate = found.get("sha256", ""), found.get("certificate", "")
    if bool(sha256) == bool(certificate):
        raise ValueError("expected either sha256 or certificate")
    if sha256 and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise ValueError("sha256: expected 64 lower-case hex digits")
    if certificate and not (isinstance(certificate, str) and _CERTIFICATE.fullmatch(certificate)):
        raise ValueError("certificate: expected DNS:, URI:, EMAIL:, IP: or CN: before a name")
    identity = Identity(name, parse_scopes(found.get("scopes")))
    return Entry(identity, sha256, certificate, _parse_time(found.get("expires")))


def _parse_object(line: str) -> dict[str, Any]:
    try:
        match json.loads(line):
            case dict() as found:
                return found
    except (json.JSONDecodeError, RecursionError):
        pass
    raise ValueError("expected a JSON object, as `whence-server token new` prints it")


def parse_scopes(given: Any) -> frozenset[Scope]:
    """Parse a list of scopes' names.

    Raises:
        ValueError: it is no list, or a name is unknown.
    """
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"scopes: expected a list of {', '.join(Scope)}")
    for name in given:
        if name not in list(Scope):
            raise ValueError(f"scopes: {name!r} is none of {', '.join(Scope)}")
    return frozenset(map(Scope, given))


def _parse_time(given: Any) -> datetime | None:
    if given is None:
        return None
    try:
        time = datetime.fromisoformat(given)
    except (TypeError, ValueError):
        time = None
    if time is None or time.tzinfo is None:
        raise ValueError("expires: expected a time with a zone, as in 2027-01-31T00:00:00Z")
    return time
