"""TLS over HTTP: what a client keeps from before a change of the files."""

import ssl
from pathlib import Path

import pytest
from certificates import Authority

from whence_server.access.ssl_contexts import make_ssl_context
from whence_server.access.tls_files import TlsFiles, TlsPaths


def shake_hands(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Return both ends of a connection in memory after its handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [here, there]
    for _ in range(20):
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return here, there


def test_session_of_tls_1_2_does_not_outlive_the_ca_of_its_client(tmp_path: Path) -> None:
    mine, theirs = Authority(tmp_path / "mine"), Authority(tmp_path / "theirs")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(theirs.ca.read_bytes())
    server = make_ssl_context(TlsFiles(TlsPaths(*mine.issue("server", "localhost"), trusted)))
    client = mine.make_client_context(theirs.issue("client", "client.example"))
    client.maximum_version = ssl.TLSVersion.TLSv1_2

    # Both ends are kept: OpenSSL forgets the session of a connection that was not closed cleanly.
    first = shake_hands(client, server)
    assert first[1].getpeercert()
    second = shake_hands(client, server, first[0].session)
    assert second[1].session_reused, "as long as the files are the same"

    trusted.write_bytes(Authority(tmp_path / "new").ca.read_bytes())
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(client, server)
    with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
        shake_hands(client, server, first[0].session)
