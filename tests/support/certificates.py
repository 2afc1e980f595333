"""Certificates of a CA of one's own, as files, for servers and clients in tests."""

import ssl
from datetime import datetime
from pathlib import Path

import trustme


class Authority:
    """A CA that writes PEM files into a directory.

    Attributes:
        directory: the directory.
        ca: its certificate.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self._authority.cert_pem.bytes())

    def issue(
        self,
        name: str,
        *identities: str,
        common_name: str | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> tuple[Path, Path]:
        """Write NAME.pem and NAME.key, over older ones; return their paths."""
        issued = self._authority.issue_cert(
            *identities, common_name=common_name, not_before=not_before, not_after=not_after
        )
        certificate, key = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key

    def make_client_context(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Return the TLS of a client over HTTP that trusts the CA."""
        context = ssl.create_default_context(cafile=self.ca)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context
