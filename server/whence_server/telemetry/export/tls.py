"""TLS towards a collector: whom to trust, and who we are."""

import ssl
from pathlib import Path

import grpc

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings


def ssl_context(settings: OtlpSettings) -> ssl.SSLContext:
    """Make the context that OTLP over HTTP connects with.

    Raises:
        ConfigurationError: a file is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=settings.certificate)
    except (OSError, ssl.SSLError) as error:
        raise _not_pem("certificates", settings.certificate, error) from error
    if settings.client_certificate is not None:
        try:
            context.load_cert_chain(settings.client_certificate, settings.client_key)
        except (OSError, ssl.SSLError) as error:
            what = f"a certificate and the key in {settings.client_key}"
            raise _not_pem(what, settings.client_certificate, error) from error
    return context


def channel_credentials(settings: OtlpSettings) -> grpc.ChannelCredentials:
    """Make the credentials that OTLP over gRPC connects with.

    Raises:
        ConfigurationError: a file is not what it should be.
    """
    ssl_context(settings)  # gRPC would take nonsense, and fail at every handshake
    return grpc.ssl_channel_credentials(
        root_certificates=_bytes_of(settings.certificate),
        private_key=_bytes_of(settings.client_key),
        certificate_chain=_bytes_of(settings.client_certificate),
    )


def _bytes_of(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _not_pem(what: str, path: Path | None, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"OTLP over TLS: {path} holds no {what}, in PEM: {error}")
