"""`/healthz` of a running server: it agrees with gRPC's health, and tells who is behind."""

import asyncio
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc
from whence_server.demo.receiver import Receiver

SECRET = "zanzibar quokka"
SERVING = health_pb2.HealthCheckResponse.SERVING


def url_of(process: ServerProcess) -> str:
    """Return the page's URL from the log, which has it before the model is loaded."""
    return f"{process.find_metrics()}/healthz"


def ask(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def ask_until(url: str, condition: Callable[[dict[str, Any]], bool]) -> tuple[int, dict[str, Any]]:
    deadline = time.monotonic() + 60
    while True:
        status, document = ask(url)
        if condition(document):
            return status, document
        assert time.monotonic() < deadline, document
        time.sleep(0.02)


def spans_of(document: dict[str, Any]) -> dict[str, Any]:
    spans = document["consumers"]["otlp-spans"]
    assert isinstance(spans, dict)
    return spans


async def test_a_collector_that_is_down_is_shown_and_the_server_stays_healthy(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    receiver = Receiver()  # its port refuses connections until it is started
    flags = ("--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", receiver.endpoint)
    try:
        with ServerProcess(tiny_model("gpt2"), tmp_path, *flags) as process:
            url = url_of(process)
            with grpc.insecure_channel(process.target) as channel:
                request = g.GenerateRequest(
                    prompt=SECRET,
                    decoding=g.Decoding(max_new_tokens=12, ignore_eos=True),
                )
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                finished = list(stub.Generate(request))[-1].event.finished
                health = health_pb2_grpc.HealthStub(channel)
                assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
            # Twelve steps, an end, the call; and the start, unless it was read before the first
            # step, as it has no span of its own.
            status, document = await asyncio.to_thread(
                ask_until,
                url,
                lambda document: (
                    spans_of(document)["retrying"]
                    and spans_of(document)["entries_behind"] in {14, 15}
                    # An age counts from the first look, which may be this one.
                    and spans_of(document)["seconds_behind"] > 0
                ),
            )
            assert (status, document["status"], document["draining"]) == (200, "SERVING", False)
            assert document["engine"] == {"state": "running", "restarts": 0}
            none = {"running": 0, "sequences_waiting": 0, "unrecorded": 0}
            assert document["generations"] == none
            behind = spans_of(document)
            assert behind["seconds_behind"] > 0
            assert behind["last_error"].startswith("UNAVAILABLE: ")
            assert (behind["exported"], behind["set_aside"]) == (0, 0)
            later = (await asyncio.to_thread(ask, url))[1]
            assert spans_of(later)["seconds_behind"] > behind["seconds_behind"]
            page = await asyncio.to_thread(read, url.replace("healthz", "metrics"))
            lag = f"{behind['entries_behind']}.0"
            assert f'whence_cursor_lag{{whence_consumer="otlp-spans"}} {lag}' in page
            series = r'^whence_cursor_delay_seconds\{whence_consumer="otlp-spans"\} (.+)$'
            (delay,) = re.findall(series, page, re.MULTILINE)
            assert float(delay) >= behind["seconds_behind"]
            everything = json.dumps([document, later]) + page
            assert "zanzibar" not in everything
            assert finished.sequences[0].text not in everything
            await receiver.start()
            await receiver.wait_for(17)
            status, document = await asyncio.to_thread(
                ask_until, url, lambda document: spans_of(document)["entries_behind"] == 0
            )
            assert status == 200
            caught_up = spans_of(document)
            assert (caught_up["seconds_behind"], caught_up["retrying"]) == (0.0, False)
            assert caught_up["exported"] == 17
    finally:
        await receiver.close()


def test_health_is_not_serving_while_the_model_loads_the_engine_restarts_or_the_server_drains(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    process = ServerProcess(tiny_model("gpt2-long"), tmp_path, "--metrics-listen", "127.0.0.1:0")
    url = url_of(process)
    status, document = ask(url)
    assert (status, document["status"]) == (503, "NOT_SERVING")
    with process:
        status, document = ask(url)
        assert (status, document["status"]) == (200, "SERVING")
        psutil.Process(process.engine_pid).kill()
        status, _ = ask_until(url, lambda document: document["engine"]["state"] == "restarting")
        assert status == 503
        status, document = ask_until(url, lambda document: document["engine"]["restarts"] == 1)
        assert (status, document["engine"]["state"]) == (200, "running")
        with grpc.insecure_channel(process.target) as channel:
            call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(
                g.GenerateRequest(
                    prompt="The",
                    decoding=g.Decoding(max_new_tokens=8_000, ignore_eos=True),
                )
            )
            while not next(call).event.HasField("steps"):
                pass
            process.process.terminate()
            status, document = ask_until(url, lambda document: document["draining"])
            assert (status, document["status"]) == (503, "NOT_SERVING")
            assert document["generations"]["running"] == 1
            call.cancel()
        assert process.wait() == 0
