"""Connection of a recorder: over TLS, with the caller's token, and never in plain text instead."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from waiting import wait_until

from whence.security import choose_server
from whence.v1.record_pb2 import RecorderHello, RecordGenerationsResponse
from whence.v1.record_pb2_grpc import RecordServiceServicer, add_RecordServiceServicer_to_server
from whence_hooks.connection import Connection
from whence_hooks.outbox import Outbox

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
