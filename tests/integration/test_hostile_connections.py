"""Clients that hold connections without use, or reset calls at once: each is ended in its time."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import psutil
import pytest
from raw_http2 import (
    CANCEL,
    END_HEADERS,
    GREETING,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    make_frame,
    make_headers,
)
from server_process import ServerProcess

from whence.v1 import model_pb2, model_pb2_grpc

LIST_MODELS = "/whence.v1.ModelService/ListModels"
NUM_RESETS = 20_000
HONEST_S = 20.0
"""Most seconds of an honest call, on a machine whose processors the attack keeps busy."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    flags = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    with ServerProcess(tiny_model("gpt2"), tmp_path_factory.mktemp("hostile"), *flags) as process:
        yield process


def get_address(server: ServerProcess, front: str) -> tuple[str, int]:
    target = server.target if front == "grpc" else urlsplit(server.http_url).netloc
    host, _, port = target.rpartition(":")
    return host, int(port)


def measure_patience(
    address: tuple[str, int], greeting: bytes, drip: bytes, most_s: float
) -> float:
    """Send a greeting, then a drip each half second; return the seconds until the server closes."""
    with socket.create_connection(address, 10) as connection:
        begin = time.monotonic()
        with suppress(ConnectionError):
            connection.sendall(greeting)
        connection.settimeout(0.5)
        while (elapsed := time.monotonic() - begin) < most_s:
            try:
                if not connection.recv(65_536):
                    break
            except TimeoutError:
                with suppress(ConnectionError):
                    connection.sendall(drip)
            except ConnectionError:
                break
        return elapsed


PROMISED = make_frame(HEADERS, b"\x83", 0, 1)
SLOW: dict[str, tuple[str, bytes, bytes, float]] = {
    # front, what is said at once, what is said each half second, most seconds: about twice the
    # server's limit, for a machine that is busy
    "gRPC: nothing": ("grpc", b"", b"", 30),
    "gRPC: a preface, byte by byte": ("grpc", PREFACE[:1], b"R", 30),
    "gRPC: headers without an end": ("grpc", GREETING + PROMISED, b"", 60),
    "gRPC: pings": ("grpc", GREETING + make_frame(PING, bytes(8)) * 100, b"", 30),
    "HTTP: nothing": ("http", b"", b"", 40),
    "HTTP: headers, byte by byte": ("http", HEAD[:9], b"x", 40),
    "HTTP: a header of 1 MiB": ("http", HEAD + b"X: " + b"x" * (1 << 20), b"", 40),
    "HTTP: a body, byte by byte": ("http", HEAD + b"Content-Length: 1000\r\n\r\n{", b" ", 90),
}


def find_traceback(server: ServerProcess) -> str:
    """Return the part of the server's log from a traceback on; "" without one."""
    return "".join(server.log).partition("Traceback")[2]


def list_models(server: ServerProcess) -> float:
    """Ask for the models over a new connection; return the seconds."""
    begin = time.monotonic()
    with grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        assert stub.ListModels(model_pb2.ListModelsRequest(), timeout=HONEST_S).models
    return time.monotonic() - begin


def test_slow_clients_are_ended_in_time_and_honest_ones_served(server: ServerProcess) -> None:
    with ThreadPoolExecutor(len(SLOW)) as attackers:
        measured = {
            name: attackers.submit(
                measure_patience, get_address(server, front), greeting, drip, most_s
            )
            for name, (front, greeting, drip, most_s) in SLOW.items()
        }
        list_models(server)
        answer = httpx.get(f"{server.http_url}/v1/models", timeout=HONEST_S)
        assert answer.status_code == 200
        patient = {
            name: future.result()
            for name, future in measured.items()
            if future.result() >= SLOW[name][3]
        }
    assert patient == {}
    assert find_traceback(server) == ""


def test_calls_that_are_reset_at_once_harm_nobody(server: ServerProcess) -> None:
    """Open and cancel calls as fast as a connection takes them (CVE-2023-44487)."""
    process = psutil.Process(server.pid)
    list_models(server)
    before = process.memory_info().rss
    block = make_headers(LIST_MODELS)

    def attack() -> None:
        with (
            suppress(ConnectionError, TimeoutError),
            socket.create_connection(get_address(server, "grpc"), 10) as connection,
        ):
            connection.settimeout(10)
            connection.sendall(GREETING)
            for first in range(0, NUM_RESETS, 100):
                connection.sendall(
                    b"".join(
                        make_frame(HEADERS, block, END_HEADERS, stream)
                        + make_frame(RST_STREAM, CANCEL, 0, stream)
                        for stream in range(2 * first + 1, 2 * first + 201, 2)
                    )
                )

    with ThreadPoolExecutor(3) as attackers:
        running = [attackers.submit(attack) for _ in range(3)]
        honest = [list_models(server)]
        while not all(it.done() for it in running):
            honest.append(list_models(server))
        for it in running:
            it.result()
    assert max(honest) < HONEST_S
    list_models(server)
    assert process.memory_info().rss - before < 256 << 20
    assert server.process.poll() is None
    assert find_traceback(server) == ""
