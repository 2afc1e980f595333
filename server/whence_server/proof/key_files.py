"""Files of signing keys: private keys as PEM, and the list of keys."""

import os
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from whence_server.domain.errors import ConfigurationError
from whence_server.proof.signer import PrivateKey

_MAX_BYTES = 64 << 10
_STRANGERS = stat.S_IWGRP | stat.S_IRWXO


def read_secret(path: Path, flag: str) -> bytes:
    """Read the file of a private key, which strangers cannot read.

    Raises:
        ConfigurationError: others can read the file, or its group can write to it.
        OSError: it cannot be read.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _STRANGERS:
        raise ConfigurationError(
            f"{flag} {path}: others can read it, or its group can write to it (mode "
            f"{mode:03o}), and could sign; run chmod 600 {path}"
        )
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)


def read_private_key(path: Path, flag: str = "--signing-key") -> PrivateKey:
    """Read a private key.

    Raises:
        ConfigurationError: others can read the file, or it is no key on the curve P-256.
        FileNotFoundError: the file does not exist.
    """
    try:
        pem = read_secret(path, flag)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{flag} {path}: cannot be read ({error.strerror})") from None
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError(
            f"{flag} {path}: is no private key in PEM without a password; `openssl ecparam -name "
            "prime256v1 -genkey -noout` makes one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(
            f"{flag} {path}: is no elliptic-curve key on P-256, the only curve that statements are "
            "signed on"
        )
    return PrivateKey(key)


def write_private(path: Path, content: bytes, like: Path | None = None) -> None:
    """Write a file in one step, so that a crash leaves the old one or the new one.

    Owner, group and mode are those of the file that it replaces: another user's server goes on to
    read it. A new file belongs to this process, with mode 0600.

    Args:
        path: the file.
        content: its content.
        like: file whose owner, group and mode a new file takes over.

    Raises:
        ConfigurationError: it cannot be written.
    """
    for model in (path, like):
        if model is not None and model.exists():
            found = model.stat()
            _write(path, content, stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid))
            return
    _write(path, content, 0o600, None)


def write_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file in one step, so that a crash leaves the old one or the new one.

    Raises:
        ConfigurationError: it cannot be written.
    """
    _write(path, content, mode, None)


def _write(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    try:
        # mkstemp gives mode 0600.
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                made = os.fstat(descriptor)
                if owner is not None and owner != (made.st_uid, made.st_gid):
                    os.fchown(descriptor, *owner)
                os.fchmod(descriptor, mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(path)
            sync_directory(path.parent)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from None


def sync_directory(directory: Path) -> None:
    """Wait until changes of a directory's names are on disk.

    Raises:
        OSError: it cannot be done.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
