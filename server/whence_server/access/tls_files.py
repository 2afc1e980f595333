"""Certificate, key and client CA of the server's TLS, read again when their files change."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from whence_server.access.changes import Fingerprint, take_fingerprint
from whence_server.domain.errors import ConfigurationError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """Paths of the PEM files.

    Attributes:
        certificate: the server's certificate, followed by those between it and its CA.
        key: its private key.
        client_ca: CA certificates of clients; None if clients need no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Contents of the files, which fit together."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class TlsFiles:
    """The newest usable contents of the files; safe to share between threads.

    While the files are being replaced, the certificate may not fit the key for a moment: then the
    contents of before stay in use, and the files are read again at the next connection.

    Raises:
        ConfigurationError: a file is missing or unusable, or the files do not fit together.
    """

    def __init__(self, paths: TlsPaths) -> None:
        self.paths = paths
        self._lock = threading.Lock()
        self._seen = self._take_fingerprints()
        self._material = read_material(paths)
        self._is_current = True

    @property
    def material(self) -> TlsMaterial:
        """The contents in use; another object after a change."""
        with self._lock:
            seen = self._take_fingerprints()
            if seen != self._seen or not self._is_current:
                self._reload(seen)
            return self._material

    def _reload(self, seen: tuple[Fingerprint, ...]) -> None:
        has_changed, self._seen = seen != self._seen, seen
        try:
            self._material = read_material(self.paths)
        except ConfigurationError as error:
            self._is_current = False
            if has_changed:
                _log.error("%s; the certificate of before stays in use", error)
        else:
            self._is_current = True
            _log.info("the TLS certificate was read again from %s", self.paths.certificate)

    def _take_fingerprints(self) -> tuple[Fingerprint, ...]:
        paths = (self.paths.certificate, self.paths.key, self.paths.client_ca)
        return tuple(take_fingerprint(path) for path in paths if path is not None)


def read_material(paths: TlsPaths) -> TlsMaterial:
    """Read and check the files.

    Raises:
        ConfigurationError: a file is missing or unusable, or the files do not fit together.
    """
    # Imported here, because cryptography takes long to import, and many servers have no TLS.
    from whence_server.access import pem_files

    now = pem_files.get_now()
    certificate = pem_files.read_bytes(pem_files.CERTIFICATE, paths.certificate)
    key = pem_files.read_bytes(pem_files.KEY, paths.key)
    chain = pem_files.parse_certificates(pem_files.CERTIFICATE, paths.certificate, certificate)
    parsed_key = pem_files.parse_key(paths.key, key)
    pem_files.check_key_matches(chain[0], parsed_key, paths.certificate, paths.key)
    for one in chain:
        pem_files.check_validity(pem_files.CERTIFICATE, paths.certificate, one, now)
    client_ca = None
    if paths.client_ca is not None:
        client_ca = pem_files.read_bytes(pem_files.CLIENT_CA, paths.client_ca)
        trusted = pem_files.parse_certificates(pem_files.CLIENT_CA, paths.client_ca, client_ca)
        for one in trusted:
            pem_files.check_validity(pem_files.CLIENT_CA, paths.client_ca, one, now)
        # Without comments, which need not be ASCII.
        client_ca = pem_files.encode(trusted)
    return TlsMaterial(certificate, key, client_ca)
