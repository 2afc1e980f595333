"""Files of the server's TLS: faults are named, and changes are taken over whole."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization

from whence_server.access.tls_files import TlsFiles, TlsPaths
from whence_server.domain.errors import ConfigurationError


def refuse(certificate: Path, key: Path, client_ca: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        TlsFiles(TlsPaths(certificate, key, client_ca))
    return caught.value.message


def test_unusable_files_are_refused_by_name_with_the_remedy(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost")
    assert refuse(tmp_path / "none", key) == (
        f"--tls-cert {tmp_path}/none: cannot be read (No such file or directory); expected a PEM "
        "file"
    )
    assert "holds no certificate, but a private key" in refuse(key, key)
    assert "holds no private key, but a certificate" in refuse(certificate, certificate)
    assert f"--tls-client-ca {key}: holds no certificate" in refuse(certificate, key, key)
    (tmp_path / "noise").write_bytes(os.urandom(100))
    assert "holds no certificate; expected PEM" in refuse(tmp_path / "noise", key)


def test_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.issue("server", "localhost")
    _, other_key = authority.issue("other", "localhost")
    assert refuse(certificate, other_key) == (
        f"--tls-key {other_key}: is not the key of the first certificate in --tls-cert "
        f"{certificate}; give the key that the certificate was made with"
    )


def test_encrypted_key_is_refused(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("server", "localhost")
    parsed = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        parsed.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "is encrypted; expected a key without a passphrase" in refuse(certificate, key)


def test_certificate_outside_its_time_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old = authority.issue("old", "localhost", not_after=datetime(2020, 5, 6, tzinfo=UTC))
    assert "the certificate expired on 2020-05-06 00:00 UTC, and it is 20" in refuse(*old)
    early = authority.issue("early", "localhost", not_before=datetime(2999, 1, 1, tzinfo=UTC))
    assert "is not valid before 2999-01-01 00:00 UTC" in refuse(*early)


def test_new_files_are_taken_over_only_once_they_fit_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost")
    files = TlsFiles(TlsPaths(certificate, key))
    first = files.material
    assert files.material is first, "unchanged files are not read again"
    new_certificate, new_key = authority.issue("new", "localhost")
    shutil.move(new_certificate, certificate)
    for _ in range(3):
        assert files.material is first, "the key still belongs to the certificate of before"
    (told,) = [record.getMessage() for record in caplog.records]
    assert "is not the key of the first certificate" in told
    assert told.endswith("the certificate of before stays in use")
    shutil.move(new_key, key)
    second = files.material
    assert second.certificate == certificate.read_bytes()
    assert second.key == key.read_bytes()
    key.unlink()
    assert files.material is second


def test_replaced_link_counts_as_a_change(tmp_path: Path) -> None:
    """Secrets that are mounted into a container are links into a directory that is swapped."""
    for name in ("one", "two"):
        Authority(tmp_path / name).issue("tls", "localhost")
    (tmp_path / "current").symlink_to("one")
    current = tmp_path / "current"
    files = TlsFiles(TlsPaths(current / "tls.pem", current / "tls.key", current / "ca.pem"))
    first = files.material
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(current)
    second = files.material
    assert second.certificate == (tmp_path / "two" / "tls.pem").read_bytes()
    assert second.client_ca != first.client_ca
