"""Reading of PEM files for TLS: each fault is named, with the setting and the remedy."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from whence_server.domain.errors import ConfigurationError

CERTIFICATE, KEY, CLIENT_CA = "--tls-cert", "--tls-key", "--tls-client-ca"


def read_bytes(flag: str, path: Path) -> bytes:
    """Read a file.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _make_error(
            flag, path, f"cannot be read ({error.strerror}); expected a PEM file"
        ) from None


def parse_certificates(flag: str, path: Path, content: bytes) -> list[x509.Certificate]:
    """Parse the certificates of a PEM file, at least one.

    Raises:
        ConfigurationError: the file holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        found = ", but a private key" if b"PRIVATE KEY-----" in content else ""
        raise _make_error(
            flag, path, f"holds no certificate{found}; expected PEM, -----BEGIN CERTIFICATE-----"
        ) from None


def parse_key(path: Path, content: bytes) -> PrivateKeyTypes:
    """Parse the private key of a PEM file.

    Raises:
        ConfigurationError: the file holds no private key, or an encrypted one.
    """
    try:
        return serialization.load_pem_private_key(content, None)
    except TypeError:
        why = "is encrypted; expected a key without a passphrase (openssl pkey writes one)"
        raise _make_error(KEY, path, why) from None
    except ValueError:
        found = ", but a certificate" if b"BEGIN CERTIFICATE-----" in content else ""
        raise _make_error(
            KEY, path, f"holds no private key{found}; expected PEM, -----BEGIN PRIVATE KEY-----"
        ) from None


def check_key_matches(
    certificate: x509.Certificate, key: PrivateKeyTypes, certificate_path: Path, key_path: Path
) -> None:
    """Check that a key is the key of a certificate.

    Raises:
        ConfigurationError: the certificate has another key.
    """
    der, info = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    of_key = key.public_key().public_bytes(der, info)
    if certificate.public_key().public_bytes(der, info) != of_key:
        raise _make_error(
            KEY,
            key_path,
            f"is not the key of the first certificate in {CERTIFICATE} {certificate_path}; give "
            "the key that the certificate was made with",
        )


def check_validity(flag: str, path: Path, certificate: x509.Certificate, now: datetime) -> None:
    """Check that a certificate is valid at a time.

    Raises:
        ConfigurationError: the certificate has expired, or is not valid yet.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        why = f"expired on {_format_time(end)}"
    elif now < begin:
        why = f"is not valid before {_format_time(begin)}"
    else:
        return
    raise _make_error(flag, path, f"the certificate {why}, and it is {_format_time(now)} now")


def encode(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return certificates in PEM format."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def get_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


def _format_time(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


def _make_error(flag: str, path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{flag} {path}: {why}")
