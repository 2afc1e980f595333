"""TLS of gRPC's ports, with the newest certificate for each new connection."""

import grpc

from whence_server.access.tls_files import TlsFiles, TlsMaterial


def make_server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that take the newest contents of the files at every handshake.

    gRPC accepts TLS 1.2 and later. Streams that run keep their connection.
    """
    newest = files.material

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls it in a thread of its own, before each handshake.
        nonlocal newest
        material = files.material
        if material is newest:
            return None
        newest = material
        return _make_configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _make_configuration(newest),
        fetch,  # type: ignore[arg-type]  # None leaves the configuration as it is
        require_client_authentication=newest.client_ca is not None,
    )


def _make_configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_ca
    )
