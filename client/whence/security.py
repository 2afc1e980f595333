"""Security of the connection to the server: TLS, and the token of the caller."""

import os
import ssl
from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeAlias

import grpc

from whence.channel import resolve_target, split_tls_scheme
from whence.errors import UnauthenticatedError
from whence.loopback import is_local

CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE = "WHENCE_CA", "WHENCE_CERT", "WHENCE_KEY"
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "WHENCE_TOKEN", "WHENCE_TOKEN_FILE"

FilePath: TypeAlias = str | PathLike[str]

_SOCKETS = ("unix:", "unix-abstract:", "vsock:")


class Server(NamedTuple):
    """The server to connect to.

    Attributes:
        address: its address, for gRPC.
        credentials: credentials for TLS; None for plain text.
    """

    address: str
    credentials: grpc.ChannelCredentials | None
    read_token: Callable[[], str] = str
    """Returns the token of the next call; "" for none."""


def choose_server(
    target: str | None,
    credentials: grpc.ChannelCredentials | None = None,
    *,
    ca: FilePath | None = None,
    cert: FilePath | None = None,
    key: FilePath | None = None,
    token: str | None = None,
    token_file: FilePath | None = None,
) -> Server:
    """Return the server that a client's arguments and the environment name.

    TLS is used if the target begins with "https://" or "grpcs://", or if a CA or a certificate is
    given by an argument or by $WHENCE_CA, $WHENCE_CERT and $WHENCE_KEY. The variables do not apply
    to Unix sockets, which speak no TLS, nor beside `credentials`.

    Args:
        target: target of `whence.channel.resolve_target`, or one of it after a scheme.
        credentials: credentials that the caller made; then no file may be given.
        ca: PEM file of the CA certificates to trust; gRPC's own roots without one.
        cert: PEM file of the client's certificate, for a server that asks for one.
        key: PEM file of its private key.
        token: token of the caller; default: $WHENCE_TOKEN.
        token_file: file of the token, which is read for each call, because tokens are renewed;
            default: $WHENCE_TOKEN_FILE.

    Raises:
        ValueError: the target is not an address, a file cannot be read, the arguments contradict
            each other, or a token would travel unencrypted to another machine.
    """
    address, is_encrypted = split_tls_scheme(resolve_target(target))
    server = _choose_encryption(address, is_encrypted, credentials, ca, cert, key)
    read_token = _choose_token(token, token_file)
    if read_token is None:
        return server
    if server.credentials is None and not is_local(address):
        raise ValueError(
            f"target {address!r}: a token would travel unencrypted; write https://{address}, or "
            "pass it as metadata ({'authorization': 'Bearer ...'}) if something else encrypts"
        )
    read_token()
    return server._replace(read_token=partial(_read_for_call, read_token))


def _choose_encryption(  # noqa: PLR0917 - the arguments of a client
    address: str,
    is_encrypted: bool,
    credentials: grpc.ChannelCredentials | None,
    ca: FilePath | None,
    cert: FilePath | None,
    key: FilePath | None,
) -> Server:
    if credentials is not None:
        if ca or cert or key:
            raise ValueError("give either `credentials` or files (`ca`, `cert`, `key`), not both")
        return Server(address, credentials)
    if address.startswith(_SOCKETS):
        if ca or cert or key:
            raise ValueError(
                f"target {address!r}: a Unix socket speaks no TLS; leave the files out"
            )
        return Server(address, None)
    ca = ca or os.environ.get(CA_VARIABLE)
    cert, key = cert or os.environ.get(CERT_VARIABLE), key or os.environ.get(KEY_VARIABLE)
    if bool(cert) != bool(key):
        raise ValueError(
            f"the client's certificate and its private key belong together: give both (`cert` and "
            f"`key`, --cert and --key, or {CERT_VARIABLE} and {KEY_VARIABLE})"
        )
    if not (is_encrypted or ca or cert):
        return Server(address, None)
    _check_files(ca, cert, key)
    return Server(
        address,
        grpc.ssl_channel_credentials(
            _read(ca), private_key=_read(key), certificate_chain=_read(cert)
        ),
    )


def _read_for_call(read_token: Callable[[], str]) -> str:
    """Return the token; raise UnauthenticatedError if its file has become unusable."""
    try:
        return read_token()
    except ValueError as error:
        raise UnauthenticatedError(str(error), reason="TOKEN_UNREADABLE") from None


def _choose_token(token: str | None, token_file: FilePath | None) -> Callable[[], str] | None:
    """Return a function that returns the token; None if there is none."""
    if token and token_file:
        raise ValueError("give either `token` or `token_file`, not both")
    if not (token or token_file):
        token = os.environ.get(TOKEN_VARIABLE)
        token_file = None if token else os.environ.get(TOKEN_FILE_VARIABLE)
    if token:
        fixed = _check_token("the token", token)
        return lambda: fixed
    if not token_file:
        return None
    path = Path(token_file)

    def read() -> str:
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"token file {str(path)!r} cannot be read ({why})") from None
        return _check_token(f"token file {str(path)!r}", content.strip())

    return read


def _check_token(where: str, token: str) -> str:
    """Return a token; gRPC would refuse other characters in a header, and show the token."""
    if not token or not all("!" <= character <= "~" for character in token):
        raise ValueError(f"{where}: expected printable ASCII characters without spaces")
    return token


def _check_files(ca: FilePath | None, cert: FilePath | None, key: FilePath | None) -> None:
    """Raise ValueError for an unusable file: gRPC would only fail to connect."""
    for path in (ca, cert, key):
        try:
            _read(path)
        except OSError as error:
            raise ValueError(
                f"{str(path)!r} cannot be read ({error.strerror}); expected a PEM file"
            ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(ca)
    except ssl.SSLError:
        raise ValueError(f"{str(ca)!r} holds no CA certificates in PEM format") from None
    try:
        if cert:
            # Without a function, OpenSSL would ask the terminal for the passphrase.
            context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"{str(cert)!r} and {str(key)!r} are not a certificate and its private "
            f"key, without a passphrase, in PEM format: {error}"
        ) from None


def _read(path: FilePath | None) -> bytes | None:
    return Path(path).read_bytes() if path else None
