"""The Ed25519 key that signs the checkpoints of a log, or the cosignatures of a witness."""

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whence_server.domain.errors import ConfigurationError
from whence_server.proof.key_files import read_secret


def load_key(flag: str, path: Path) -> Ed25519PrivateKey:
    """Load a key from a PEM file.

    Raises:
        ConfigurationError: the file cannot be read, others can read it, or it holds no such key.
    """
    try:
        key = serialization.load_pem_private_key(read_secret(path, flag), None)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no PEM file with a clear key"
        raise ConfigurationError(f"{flag} {path} cannot be read: {why}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{flag} {path} holds a key of another kind; expected Ed25519 "
            "(openssl genpkey -algorithm ed25519)"
        )
    return key


def make_key(flag: str, path: Path) -> Ed25519PrivateKey:
    """Make a key and write it to a new file with mode 0600; return the one that is there if any.

    Raises:
        ConfigurationError: the file cannot be written or read.
    """
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            # Whole or not at all, and never in place of another key.
            os.link(draft, path)
        except FileExistsError:
            return load_key(flag, path)
        finally:
            draft.unlink()
        _sync_directory(path.parent)
    except OSError as error:
        raise ConfigurationError(f"{flag} {path} cannot be written: {error.strerror}") from error
    return key


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
