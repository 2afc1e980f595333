"""The sample application of the Kubernetes manifests, beside a server that follows a script."""

import importlib.util
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import grpc
import pytest
from client_fake_server import Break, FakeServer

from whence import Client
from whence.v1 import generation_pb2 as pb

APP = Path(__file__).parents[2] / "deploy" / "kubernetes" / "base" / "sample" / "app.py"
TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def application() -> ModuleType:
    spec = importlib.util.spec_from_file_location("whence_sample_application", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def running(target: str) -> Iterator[str]:
    with (
        Client(target, connect_timeout_s=0.2, resume_timeout_s=0.2) as client,
        application().Application(("127.0.0.1", 0), client) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_sample_streams_text_and_propagates_the_trace(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with FakeServer() as fake, running(fake.target) as url:
        prompt = "Say hello & so on"
        status, text = get(f"{url}/complete?prompt={quote(prompt)}", traceparent=TRACEPARENT)
        assert status == 200
        assert text == f"Hello world! café 中\n[length, trace {'ab' * 16}]\n"
        (request,) = fake.script.requests(pb.GenerateRequest)
        assert request.prompt == prompt
        assert fake.script.metadata[0]["traceparent"] == TRACEPARENT
    log = capfd.readouterr().err
    assert "GET /complete 200" in log
    assert "hello" not in log


def test_the_sample_describes_its_parameters() -> None:
    with FakeServer() as fake, running(fake.target) as url:
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/complete")[0] == 400
        assert get(f"{url}/complete?prompt={'x' * 4_001}")[0] == 400
        assert get(f"{url}/other")[0] == 404
        assert fake.script.requests(pb.GenerateRequest) == []


def test_a_refusal_before_the_first_token_is_an_error_and_after_it_is_told() -> None:
    with FakeServer() as fake, running(fake.target) as url:
        fake.script.turns.append(Break(0, grpc.StatusCode.INVALID_ARGUMENT))
        assert get(f"{url}/complete?prompt=x")[0] == 502
        fake.script.turns.append(Break(3, grpc.StatusCode.INVALID_ARGUMENT))
        status, text = get(f"{url}/complete?prompt=x")
        assert status == 200
        assert text.startswith("Hello")
        assert "[broken off: " in text


def test_the_sample_starts_without_its_server(tmp_path: Path) -> None:
    with running("unix:/nonexistent/whence.sock") as url:
        assert get(f"{url}/healthz") == (200, "ok\n")
        assert get(f"{url}/complete?prompt=x")[0] == 502
