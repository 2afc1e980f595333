"""Bounds on the connections of one address, on the ports of gRPC, HTTP and metrics."""

import argparse
import asyncio
import socket
import ssl
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from backend_process import find_free_port
from waiting import wait_until

from whence_server import observability
from whence_server.config import add_arguments, make_serve_config
from whence_server.domain.addresses import group_address
from whence_server.http import connections
from whence_server.http import server as http_server
from whence_server.http.connections import Connections
from whence_server.http.server import HttpServer
from whence_server.journal.journal import Journal
from whence_server.journal.vocabularies import Vocabularies
from whence_server.rpc import address_bound
from whence_server.rpc.address_bound import AddressBound
from whence_server.telemetry.live import LiveServer
from whence_server.telemetry.metrics import http as metrics_http
from whence_server.telemetry.metrics.http import PageAccess


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", ""),
        ("127.9.9.9", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("", ""),
        ("unix", ""),
    ],
)
def test_connections_are_counted_by_the_network_of_a_client(address: str, group: str) -> None:
    assert group_address(address) == group


def list_descriptors() -> set[str]:
    """Return the numbers of the process's descriptors, and of the one that reads them."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def is_closed(client: socket.socket) -> bool:
    """Return whether the other end has shut the connection down."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def test_newest_connections_of_an_address_with_too_many_are_shut_down() -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address, elsewhere = listening.getsockname(), other.getsockname()

        def connect(source: str, to: tuple[str, int] = address) -> socket.socket:
            client = stack.enter_context(socket.create_connection(to, source_address=(source, 0)))
            server = listening if to == address else other
            accepted.append(stack.enter_context(server.accept()[0]))
            return client

        accepted: list[socket.socket] = []
        bound = AddressBound({address[1]}, 2, lambda host: "" if host == "127.0.0.3" else host)
        first, second = connect("127.0.0.2"), connect("127.0.0.2")
        unlimited = [connect("127.0.0.3") for _ in range(4)]
        of_other_port = [connect("127.0.0.2", elsewhere) for _ in range(4)]
        assert bound.close_excess() == 0
        third = connect("127.0.0.2")
        alone = connect("127.0.0.4")
        assert bound.close_excess() == 1
        # The system may tell this end a moment later.
        third.settimeout(60)
        assert third.recv(1) == b""
        kept = [first, second, alone, *unlimited, *of_other_port]
        assert not any(map(is_closed, kept))
        accepted[-2].close()
        descriptors = list_descriptors()
        assert bound.close_excess() == 0
        assert list_descriptors() == descriptors, "it opens and closes nothing"
        first.sendall(b"x")
        assert accepted[0].recv(1) == b"x", "the others work as before"


async def test_web_server_refuses_further_connections_of_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every connection of a test comes from loopback, which has no limit.
    monkeypatch.setattr(connections, "group_address", lambda host: host)
    bounded = Connections(asyncio.Protocol, 10, max_per_address=2)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(bounded, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def open_from(source: str) -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        readers.append(reader)
        return writer

    readers: list[asyncio.StreamReader] = []
    writers = [await open_from("127.0.0.2") for _ in range(2)]
    writers.append(await open_from("127.0.0.3"))
    refused = await open_from("127.0.0.2")
    async with asyncio.timeout(60):
        with suppress(ConnectionResetError):
            assert await readers[-1].read() == b""
    assert len(bounded) == 3
    writers[0].close()
    await wait_until(lambda: len(bounded) == 2)
    writers.append(await open_from("127.0.0.2"))
    await wait_until(lambda: len(bounded) == 3)
    for writer in (*writers, refused):
        writer.close()
    server.close()
    await wait_until(lambda: not len(bounded))
    assert not bounded._num_of_address, "nothing is kept of addresses that have left"


@pytest.fixture
def tls(monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS of a server whose connections are counted, though they come from loopback."""
    for module in (http_server, observability):
        monkeypatch.setattr(
            module, "AddressBound", lambda ports, most: AddressBound(ports, most, str)
        )
    monkeypatch.setattr(address_bound, "_WATCH_S", 0.05)
    # The handshakes' own end comes later than the test's.
    monkeypatch.setattr(http_server, "HANDSHAKE_S", 60.0)
    monkeypatch.setattr(metrics_http, "_HANDSHAKE_S", 60.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def check_two_stay(port: int) -> None:
    """Open five connections that send nothing, of which three are closed."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(5)
        ]
        await wait_until(lambda: sum(map(is_closed, clients)) >= 3)
        assert sum(map(is_closed, clients)) == 3


async def test_connections_in_their_tls_handshake_count(tls: ssl.SSLContext) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    server = HttpServer({}, "127.0.0.1", 0, answer, max_connections=9, max_per_address=2, tls=tls)
    await server.start()
    await check_two_stay(int(server.url.rpartition(":")[2]))
    await server.close()


async def test_handshakes_of_the_metrics_page_count(tls: ssl.SSLContext, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    port = find_free_port()
    flags = ["--metrics-listen", f"127.0.0.1:{port}", "--max-connections-per-address", "2"]
    settings = make_serve_config(parser.parse_args(["--model", "m", *flags]), {})
    journal = await Journal.open(tmp_path)
    shown = observability.Observability(
        settings, journal, Vocabularies(tmp_path), LiveServer(journal, 1), PageAccess(tls)
    )
    await shown.start()
    await check_two_stay(port)
    await shown.close()
    await journal.close()
