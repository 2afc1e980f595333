"""TLS towards a collector: trusted certificates, and the client's own certificate."""

import ssl
from pathlib import Path

import grpc

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings


def make_ssl_context(settings: OtlpSettings) -> ssl.SSLContext:
    """Make the TLS context of OTLP over HTTP.

    Raises:
        ConfigurationError: a PEM file does not hold what it should.
    """
    try:
        context = ssl.create_default_context(cafile=settings.certificate)
    except (OSError, ssl.SSLError) as error:
        raise _make_pem_error("certificates", settings.certificate, error) from error
    if settings.client_certificate is not None:
        try:
            context.load_cert_chain(settings.client_certificate, settings.client_key)
        except (OSError, ssl.SSLError) as error:
            what = f"a certificate and the key in {settings.client_key}"
            raise _make_pem_error(what, settings.client_certificate, error) from error
    return context


def make_channel_credentials(settings: OtlpSettings) -> grpc.ChannelCredentials:
    """Make the credentials of OTLP over gRPC.

    Raises:
        ConfigurationError: a PEM file does not hold what it should.
    """
    make_ssl_context(settings)  # checked here, because gRPC would fail at every handshake
    return grpc.ssl_channel_credentials(
        root_certificates=_read_bytes(settings.certificate),
        private_key=_read_bytes(settings.client_key),
        certificate_chain=_read_bytes(settings.client_certificate),
    )


def _read_bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _make_pem_error(what: str, path: Path | None, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"OTLP over TLS: {path} holds no {what} in PEM format: {error}")
