"""TLS of servers over HTTP, with the newest certificate for each new connection."""

import logging
import ssl
from typing import Any

from whence_server.access.tls_files import TlsFiles, TlsMaterial

_log = logging.getLogger(__name__)


def make_ssl_context(files: TlsFiles, *, requires_client: bool = True) -> ssl.SSLContext:
    """Return a context that takes the newest contents of the files at every handshake.

    Args:
        files: the files of the server's TLS.
        requires_client: whether a client must have a certificate, if there is a client CA; without
            it a client may have one, which is checked all the same.
    """
    return _Contexts(files, requires_client).first


class _Contexts:
    """The context that a server listens with, and the one of the newest files."""

    def __init__(self, files: TlsFiles, requires_client: bool) -> None:
        self._files = files
        self._requires_client = requires_client
        self._material = files.material
        self._has_new_client_ca = False
        self._newest = self.first = self._build(self._material)
        # OpenSSL calls it at each handshake, whether the client names a server or not.
        self.first.sni_callback = self._choose

    def _choose(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> int | None:
        material = self._files.material
        if material is not self._material:
            try:
                self._newest = self._build(material)
                self._has_new_client_ca |= material.client_ca != self._material.client_ca
                self._material = material
            except (OSError, ssl.SSLError) as error:
                # The files are being replaced: the next handshake tries again.
                _log.warning("TLS over HTTP keeps the certificate of before: %s", error)
        if self._newest is not self.first:
            connection.context = self._newest
        if connection.session_reused and self._has_new_client_ca:
            # OpenSSL keeps sessions of TLS 1.2 in the first context, and Python cannot turn that
            # off: this one may have begun with a certificate of a CA that is no longer trusted.
            return ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
        return None

    def _build(self, material: TlsMaterial) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session would skip the check of the client's certificate against a newer CA.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        paths = self._files.paths
        context.load_cert_chain(paths.certificate, paths.key)
        if material.client_ca is not None:
            context.load_verify_locations(cadata=material.client_ca.decode())
            context.verify_mode = ssl.CERT_REQUIRED if self._requires_client else ssl.CERT_OPTIONAL
        return context
