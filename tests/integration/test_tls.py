"""TLS of gRPC and HTTP: real sockets, real certificates, clients of others as well as our own."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import aiohttp
import grpc
import pytest
from aiohttp import web
from certificates import Authority
from google.protobuf.empty_pb2 import Empty

from whence import AsyncClient, UnavailableError
from whence_server.access.ssl_contexts import make_ssl_context
from whence_server.access.tls_files import TlsFiles, TlsPaths
from whence_server.http.server import HttpServer
from whence_server.journal.vocabularies import Vocabularies
from whence_server.rpc import model_servicer
from whence_server.rpc.calls import Call, CallLog, Method
from whence_server.rpc.model_servicer import ModelServicer
from whence_server.rpc.server import ServerOptions, build_server
from whence_server.rpc.serving import Serving


class Fronts:
    """A server of gRPC and one of HTTP on the same files.

    Attributes:
        port: port of gRPC.
        url: URL of HTTP.
    """

    def __init__(self, port: int, url: str) -> None:
        self.port = port
        self.url = url


async def echo(_request: Empty, call: Call) -> AsyncIterator[bytes]:
    """Yield an empty message each time that the test sets the event."""
    while True:
        await ticked.wait()
        ticked.clear()
        yield b""


ticked = asyncio.Event()


@asynccontextmanager
async def serve(files: TlsFiles) -> AsyncIterator[Fronts]:
    serving = Serving("m", None)  # type: ignore[arg-type]  # no generation is asked for
    services = {
        model_servicer.SERVICE: ModelServicer(serving, Vocabularies(Path())).list_methods(),
        "test.Echo": [Method("Tick", Empty, stream=echo)],
    }
    options = ServerOptions(("127.0.0.1:0",), tls=files)
    rpc = await build_server(options, services, CallLog(lambda call: None))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.version.__repr__())

    http = HttpServer(
        {("GET", "/"): answer},
        *("127.0.0.1", 0, answer),
        max_connections=9,
        tls=make_ssl_context(files),
    )
    await rpc.server.start()
    await http.start()
    (endpoint,) = rpc.endpoints
    assert rpc.targets == [f"grpcs://127.0.0.1:{endpoint.port}"]
    assert endpoint.port is not None
    try:
        yield Fronts(endpoint.port, http.url)
    finally:
        await http.close()
        await rpc.stop(0)


async def ask_grpc(target: str, **arguments: object) -> list[str]:
    async with AsyncClient(target, connect_timeout_s=0.0, **arguments) as client:  # type: ignore[arg-type]
        return [model.model for model in await client.models()]


async def ask_http(url: str, context: ssl.SSLContext) -> int:
    async with aiohttp.ClientSession() as session:
        async with session.get(url, ssl=context) as answer:
            return answer.status


async def test_client_needs_the_ca_and_a_name_of_the_certificate(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "own"), Authority(tmp_path / "strange")
    files = TlsFiles(TlsPaths(*authority.issue("server", "localhost", "127.0.0.1")))
    async with serve(files) as fronts:
        for target in (f"https://127.0.0.1:{fronts.port}", f"grpcs://localhost:{fronts.port}"):
            assert await ask_grpc(target, ca=authority.ca) == ["m"]
        # A CA asks for TLS by itself.
        assert await ask_grpc(f"localhost:{fronts.port}", ca=authority.ca) == ["m"]
        assert await ask_http(fronts.url, authority.make_client_context()) == 200
        with pytest.raises(UnavailableError, match="does not trust the server's cert") as caught:
            await ask_grpc(f"https://127.0.0.1:{fronts.port}", ca=stranger.ca)
        assert caught.value.reason == "TLS_UNTRUSTED"
        with pytest.raises(UnavailableError, match="needs https:// in the target"):
            await ask_grpc(f"127.0.0.1:{fronts.port}")
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask_http(fronts.url, stranger.make_client_context())
    elsewhere = TlsFiles(TlsPaths(*authority.issue("server", "elsewhere.example")))
    async with serve(elsewhere) as fronts:
        with pytest.raises(UnavailableError, match="does not have the name") as caught:
            await ask_grpc(f"https://127.0.0.1:{fronts.port}", ca=authority.ca)
        assert caught.value.reason == "TLS_WRONG_NAME"


async def test_client_certificate_is_needed_with_a_client_ca(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "own"), Authority(tmp_path / "strange")
    clients = Authority(tmp_path / "clients")
    server = authority.issue("server", "localhost", "127.0.0.1")
    own, other = clients.issue("client", "me@here"), stranger.issue("client", "me@here")
    async with serve(TlsFiles(TlsPaths(*server, clients.ca))) as fronts:
        target = f"https://localhost:{fronts.port}"
        ca = {"ca": authority.ca}
        assert await ask_grpc(target, **ca, cert=own[0], key=own[1]) == ["m"]
        assert await ask_http(fronts.url, authority.make_client_context(own)) == 200
        with pytest.raises(UnavailableError):
            await ask_grpc(target, **ca)
        with pytest.raises(UnavailableError):
            await ask_grpc(target, **ca, cert=other[0], key=other[1])
        for context in (authority.make_client_context(), authority.make_client_context(other)):
            with pytest.raises(aiohttp.ClientError):
                await ask_http(fronts.url, context)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
async def test_only_tls_1_2_and_later_are_spoken(tmp_path: Path, version: str) -> None:
    authority = Authority(tmp_path)
    files = TlsFiles(TlsPaths(*authority.issue("server", "localhost", "127.0.0.1")))
    context = authority.make_client_context()
    # Debian's OpenSSL speaks older versions only at this level.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with pytest.warns(DeprecationWarning, match="TLSv1") if version < "TLSv1_2" else nullcontext():
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]

    def connect(port: int) -> str | None:
        with socket.create_connection(("127.0.0.1", port), 10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
                return encrypted.version()

    async with serve(files) as fronts:
        for port in (fronts.port, int(fronts.url.rpartition(":")[2])):
            if version < "TLSv1_2":
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asyncio.to_thread(connect, port)
            else:
                spoken = await asyncio.to_thread(connect, port)
                assert spoken == version.replace("_", ".")


async def test_new_certificates_are_used_without_a_break_of_streams(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    current = tmp_path / "current"
    for authority in (old, new):
        authority.issue("tls", "localhost", "127.0.0.1")
    current.symlink_to("old")
    paths = TlsPaths(current / "tls.pem", current / "tls.key", current / "ca.pem")
    async with serve(TlsFiles(paths)) as fronts:
        certificate = (tmp_path / "old" / "tls.pem", tmp_path / "old" / "tls.key")
        renewed = (tmp_path / "new" / "tls.pem", tmp_path / "new" / "tls.key")
        credentials = grpc.ssl_channel_credentials(
            old.ca.read_bytes(), certificate[1].read_bytes(), certificate[0].read_bytes()
        )
        async with grpc.aio.secure_channel(f"localhost:{fronts.port}", credentials) as channel:
            stream = channel.unary_stream("/test.Echo/Tick")(b"")
            ticked.set()
            assert await stream.read() == b""
            (tmp_path / "next").symlink_to("new")
            os.replace(tmp_path / "next", current)  # noqa: PTH105 - as a mounted secret changes
            target = f"https://localhost:{fronts.port}"
            renewed_files = {"ca": new.ca, "cert": renewed[0], "key": renewed[1]}
            assert await ask_grpc(target, **renewed_files) == ["m"]
            assert await ask_http(fronts.url, new.make_client_context(renewed)) == 200
            with pytest.raises(UnavailableError) as caught:
                await ask_grpc(target, ca=old.ca, cert=certificate[0], key=certificate[1])
            assert caught.value.reason == "TLS_UNTRUSTED"
            # The server's new certificate is trusted, and its new CA refuses the old client.
            with pytest.raises(aiohttp.ClientError):
                await ask_http(fronts.url, new.make_client_context(certificate))
            ticked.set()
            assert await stream.read() == b"", "the stream of before goes on"


async def test_unusable_files_of_a_client_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one", "a@b"), authority.issue("other", "a@b")
    with pytest.raises(ValueError, match="cannot be read"):
        AsyncClient("https://localhost:1", ca=tmp_path / "none")
    with pytest.raises(ValueError, match="holds no CA certificates"):
        AsyncClient("https://localhost:1", ca=one[1])
    with pytest.raises(ValueError, match="are not a certificate and its private key"):
        AsyncClient("https://localhost:1", cert=one[0], key=other[1])
    with pytest.raises(ValueError, match="belong together"):
        AsyncClient("https://localhost:1", cert=one[0])
    with pytest.raises(ValueError, match="a Unix socket speaks no TLS"):
        AsyncClient("unix:/tmp/s", ca=authority.ca)
