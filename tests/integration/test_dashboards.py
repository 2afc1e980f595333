"""Prometheus scrapes a running server, and every panel of the dashboards has something to show."""

import contextlib
import json
import math
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from away_witness import AWAY_WITNESS
from deploy_queries import DEPLOY, NEVER_ON_A_SOUND_SERVER
from prometheus_process import ask, prometheus
from server_process import ServerProcess
from tiny_models import save_model_that_breaks

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc
from whence_server.demo.receiver import Fail, Receiver, Reject


def queries() -> list[str]:
    """Each query of each panel, as Grafana would send it for all servers."""
    found = []
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "1m")
                query = re.sub(r"\$(model|instance)", ".*", query)
                # Yesterday there was nothing yet.
                found.append(query.replace("offset 1d", "offset 1s"))
    return found


async def use(target: str) -> str:
    """Use the server so that every panel has data; return a trace id."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        trace_ids = [(await called(stub, num_tokens))[0] for num_tokens in (20, 20)]
        await called(stub, num_tokens=100)  # it fails
        # A call that came to the server, and that it could not end in time.
        ended, timeout_s = ("", grpc.StatusCode.OK), 0.1
        while not (ended[0] and ended[1] is grpc.StatusCode.DEADLINE_EXCEEDED):
            ended = await called(stub, num_tokens=50, num_sequences=32, timeout_s=timeout_s)
            if not ended[0]:  # it had ended before it came to the server
                timeout_s *= 2
    return trace_ids[-1]


async def use_over_http(url: str) -> None:
    """Generate once by OpenAI's API, and fail once."""
    async with aiohttp.ClientSession() as session:
        for num_tokens, status in ((2, 200), (100, 500)):
            body = {"prompt": "The quick brown fox", "max_tokens": num_tokens, "seed": 1}
            body["whence"] = {"ignore_eos": True}
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                assert answer.status == status


async def called(
    stub: generation_pb2_grpc.GenerationServiceStub,
    num_tokens: int,
    *,
    num_sequences: int = 1,
    timeout_s: float | None = None,
) -> tuple[str, grpc.StatusCode]:
    """Generates; gives the trace id, if the server has said it, and how the call ended."""
    decoding = g.Decoding(
        sample=g.Sample(seed=1),
        max_new_tokens=num_tokens,
        num_return_sequences=num_sequences,
        ignore_eos=True,
    )
    request = g.GenerateRequest(prompt="The quick brown fox", decoding=decoding)
    call = stub.Generate(request, timeout=timeout_s)
    trace_id = ""
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for response in call:
            trace_id = trace_id or response.event.started.trace_id
    return trace_id, await call.code()


def metrics_address(process: ServerProcess) -> str:
    return process.find_metrics().removeprefix("http://")


def has_numbers(found: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(series["value"][1])) for series in found)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A collector that is away at first, then refuses a span, then takes all."""
    made = Receiver()
    await made.start()
    made.answers = deque([Fail(grpc.StatusCode.UNAVAILABLE), Reject(1)])
    yield made
    await made.close()


async def test_every_panel_has_data_where_a_server_is_used(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "prometheus").mkdir()
    with ServerProcess(
        save_model_that_breaks(tmp_path / "model"),
        tmp_path / "data",
        *("--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", receiver.endpoint),
        *("--http-listen", "127.0.0.1:0"),
        *AWAY_WITNESS,
    ) as server:
        rules = tmp_path / "rules.yml"
        # A minute is long for a test to wait.
        text = (DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8")
        rules.write_text(text.replace("interval: 1m", "interval: 1s"), encoding="utf-8")
        with prometheus(tmp_path / "prometheus", metrics_address(server), rules) as base:
            # A rate is a difference: each series has to be there before it grows.
            await use(server.target)
            await use_over_http(server.http_url)
            grown = {"query": "whence_generations_finished_total >= 2"}
            await ask(base, "query", has_numbers, **grown)
            await use_over_http(server.http_url)
            # Last, as a bucket keeps the exemplar of its newest value.
            trace_id = await use(server.target)
            for query in queries():
                if not any(name in query for name in NEVER_ON_A_SOUND_SERVER):
                    await ask(base, "query", has_numbers, query=query)
            await check_exemplars(base, trace_id)
            await check_rules(base)


async def check_exemplars(base: str, trace_id: str) -> None:
    """Assert that Prometheus returns exemplars with trace ids, as Grafana queries them."""
    for metric in ("gen_ai_server_request_duration", "gen_ai_server_time_to_first_token"):
        window = {"start": str(time.time() - 120), "end": str(time.time() + 120)}
        await ask(
            base,
            "query_exemplars",
            lambda found: (
                trace_id in {e["labels"]["trace_id"] for s in found for e in s["exemplars"]}
            ),
            query=f"{metric}_seconds_bucket",
            **window,
        )


async def check_rules(base: str) -> None:
    """Assert that Prometheus evaluates each of our rules without an error."""

    def evaluated(groups: list[dict[str, Any]]) -> bool:
        rules = [rule for group in groups for rule in group["rules"]]
        return bool(rules) and all(rule["health"] == "ok" for rule in rules)

    await ask(base, "rules", evaluated)
