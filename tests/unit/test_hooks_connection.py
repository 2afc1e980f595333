"""Connection of a recorder: over TLS, with the caller's token, and never in plain text instead."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from waiting import wait_until

from whence.security import choose_server
from whence.v1.record_pb2 import (
    RecorderHello,
    RecordGenerationsRequest,
    RecordGenerationsResponse,
)
from whence.v1.record_pb2_grpc import RecordServiceServicer, add_RecordServiceServicer_to_server
from whence_hooks.connection import Connection
from whence_hooks.outbox import Outbox
from whence_hooks.recorder import Recorder

WAIT_S = 20.0


class Calls(RecordServiceServicer):
    """Service that answers hellos, and keeps the authorization of every call."""

    def __init__(self) -> None:
        self.authorizations: list[str] = []
        self.was_called = threading.Event()

    def RecordGenerations(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        next(request_iterator)
        self.authorizations.append(dict(context.invocation_metadata()).get("authorization", ""))
        self.was_called.set()
        yield RecordGenerationsResponse(recorded_number=0)
        for _ in request_iterator:
            pass


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA", "CERT", "KEY", "TOKEN", "TOKEN_FILE", "TARGET"):
        monkeypatch.delenv(f"WHENCE_{name}", raising=False)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], tuple[Calls, str]]]:
    """Return a function that starts a service behind TLS; it returns the service and its port."""
    servers = []
    certificate, key = Authority(tmp_path).issue("server", "localhost")

    def serve() -> tuple[Calls, str]:
        calls = Calls()
        server = grpc.server(ThreadPoolExecutor(4))
        servers.append(server)
        add_RecordServiceServicer_to_server(calls, server)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        port = server.add_secure_port("localhost:0", credentials)
        server.start()
        return calls, f"localhost:{port}"

    yield serve
    for server in servers:
        server.stop(None).wait(WAIT_S)


def test_recorder_speaks_tls_and_shows_its_token_anew_in_every_call(
    tmp_path: Path, start: Callable[[], tuple[Calls, str]]
) -> None:
    calls, address = start()
    token = tmp_path / "token"
    token.write_text("first")
    server = choose_server(f"https://{address}", ca=tmp_path / "ca.pem", token_file=token)
    hello = RecorderHello(recorder_id="r", library="test")
    for content in ("first", "renewed"):
        token.write_text(content)
        calls.was_called.clear()
        connection = Connection(server, hello, Outbox(1 << 20), {})
        assert calls.was_called.wait(WAIT_S)
        connection.close(WAIT_S)
    assert calls.authorizations == ["Bearer first", "Bearer renewed"]


async def test_token_file_that_is_missing_for_a_while_is_told_once_and_read_again(
    tmp_path: Path, start: Callable[[], tuple[Calls, str]], caplog: pytest.LogCaptureFixture
) -> None:
    calls, address = start()
    token = tmp_path / "token"
    token.write_text("secret")
    server = choose_server(f"https://{address}", ca=tmp_path / "ca.pem", token_file=token)
    token.unlink()
    connection = Connection(server, RecorderHello(recorder_id="r"), Outbox(1 << 20), {})
    await wait_until(lambda: "token" in caplog.text)
    token.write_text("secret")
    assert calls.was_called.wait(WAIT_S)
    connection.close(WAIT_S)
    assert caplog.text.count("does not answer") == 1
    assert "Traceback" not in caplog.text
    assert "secret" not in caplog.text


class Refusal(RecordServiceServicer):
    """Service that refuses every call with a status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.num_calls = 0
        self._code = code

    def RecordGenerations(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.num_calls += 1
        next(request_iterator)
        context.abort(self._code, "tokenizer.content: has a decoder with a regular expression")
        yield RecordGenerationsResponse()


@pytest.fixture
def refuse(tmp_path: Path) -> Iterator[Callable[[grpc.StatusCode], tuple[Refusal, str]]]:
    """Return a function that starts a service that refuses; it returns the service and target."""
    servers = []

    def serve(code: grpc.StatusCode) -> tuple[Refusal, str]:
        refusal = Refusal(code)
        server = grpc.server(ThreadPoolExecutor(4))
        servers.append(server)
        add_RecordServiceServicer_to_server(refusal, server)
        target = f"unix:{tmp_path / 'sock'}"
        server.add_insecure_port(target)
        server.start()
        return refusal, target

    yield serve
    for server in servers:
        server.stop(None).wait(WAIT_S)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    ],
)
async def test_recorder_that_is_refused_gives_up_and_says_so_once(
    code: grpc.StatusCode,
    refuse: Callable[[grpc.StatusCode], tuple[Refusal, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusal, target = refuse(code)
    recorder = Recorder(choose_server(target), 1 << 20)
    number = recorder.begin(lambda _: [RecordGenerationsRequest()], 1, 0)
    await wait_until(lambda: "refuses the recorder" in caplog.text)
    for connection in [t for t in threading.enumerate() if t.name == "whence-record"]:
        connection.join(WAIT_S)
        assert not connection.is_alive(), "it tries no more"
    num_lost = recorder.num_lost_generations
    assert recorder.begin(lambda _: [], 3, 0) == 0
    assert recorder.num_lost_generations == num_lost + 3
    assert not recorder.submit(list, 1)
    if number:
        recorder.end(number, lambda: [RecordGenerationsRequest()], 1)
    begin_s = time.monotonic()
    recorder.close(WAIT_S)
    assert time.monotonic() - begin_s < WAIT_S / 2, "nothing is waited for"
    assert refusal.num_calls == 1
    # A recorder of an earlier test may still end, in a thread of its own, and tell its loss here.
    (line,) = [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "WARNING" and not str(record.threadName).startswith("Thread-")
    ]
    assert f"({code.name}: tokenizer.content: has a decoder with" in line


async def test_recorder_that_the_server_has_no_room_for_tries_again(
    refuse: Callable[[grpc.StatusCode], tuple[Refusal, str]],
) -> None:
    refusal, target = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
    recorder = Recorder(choose_server(target), 1 << 20)
    await wait_until(lambda: refusal.num_calls > 1)
    recorder.close(WAIT_S)
