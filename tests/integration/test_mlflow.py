"""MLflow takes a real server's spans over HTTP, by the variables that deploy/README.md names.

`make mlflow` gives it an environment of its own.
"""

import asyncio
import base64
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from backend_process import TEST_TIMEOUT_S, mlflow, wait_for_answer
from server_process import ServerProcess
from tiny_models import save_model_that_breaks

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

NUM_SEQUENCES = 12
NUM_TOKENS = 50
CALL, MODEL_CALL = "whence.v1.GenerationService/Generate", "text_completion tiny"


async def generate(target: str, num_tokens: int, num_sequences: int = 1) -> dict[str, Any]:
    """Generates; gives the trace id, the end, and each step's token by (sequence, index)."""
    decoding = g.Decoding(
        sample=g.Sample(seed=1, temperature=0.8),
        max_new_tokens=num_tokens,
        num_return_sequences=num_sequences,
        ignore_eos=True,
    )
    steps = {}
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = g.GenerateRequest(prompt="The quick brown fox", decoding=decoding)
        responses = [response async for response in stub.Generate(request)]
    for response in responses:
        for step in response.event.steps.steps:
            steps[step.sequence_index, step.index] = step.token_id
    started, finished = responses[0].event.started, responses[-1].event.finished
    return {"trace_id": started.trace_id, "finished": finished, "steps": steps}


async def trace_of(page: str, heard: dict[str, Any]) -> dict[str, Any]:
    """Return a trace in MLflow once it has all of its spans, with plain values."""
    # The call, the model call, its queue and prefill; a span for each sequence and each step.
    num_spans = 4 + len({sequence for sequence, _ in heard["steps"]}) + len(heard["steps"])
    async with aiohttp.ClientSession() as session:
        answer = await wait_for_answer(
            session,
            lambda answer: len(answer["trace"].get("spans", ())) >= num_spans,
            "GET",
            f"{page}/api/3.0/mlflow/traces/get",
            params={"trace_id": f"tr-{heard['trace_id']}"},
        )
    for span in answer["trace"]["spans"]:
        span["attributes"] = {
            attribute["key"]: next(iter(attribute["value"].values()))
            for attribute in span["attributes"]
        }
    return dict(answer["trace"])


def check_spans(spans: list[dict[str, Any]], steps: dict[tuple[int, int], int]) -> None:
    """Every step is there once, and under its sequence, up to the call."""
    by_id = {span["span_id"]: span for span in spans}
    assert len(by_id) == len(spans), "nothing is there twice"
    parents = {
        (span["name"], by_id.get(span.get("parent_span_id"), {}).get("name")) for span in spans
    }
    assert parents == {
        (CALL, None),
        (MODEL_CALL, CALL),
        ("queue", MODEL_CALL),
        ("prefill", MODEL_CALL),
        ("decode", MODEL_CALL),
        ("decode_step", "decode"),
    }
    told = [span["attributes"] for span in spans if span["name"] == "decode_step"]
    assert {
        (one["whence.sequence.index"], one["whence.step.index"]): one["whence.token.id"]
        for one in told
    } == steps
    assert len(told) == len(steps)


@pytest.mark.timeout(TEST_TIMEOUT_S)
async def test_mlflow_takes_every_span_and_understands_the_model_call(tmp_path: Path) -> None:
    with mlflow(tmp_path / "mlflow") as page:
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{page}/v1/traces",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-mlflow-experiment-id=0",
        }
        with ServerProcess(
            save_model_that_breaks(tmp_path / "model"),
            tmp_path / "data",
            *("--model-name", "tiny"),
            environment=environment,
        ) as server:
            # More spans than one request holds; the first ones wait until MLflow is up.
            whole = await generate(server.target, NUM_TOKENS, NUM_SEQUENCES)
            failed = await generate(server.target, 100)
            traces = [await trace_of(page, heard) for heard in (whole, failed)]
            assert await asyncio.to_thread(server.terminate) == 0
    for heard, trace in zip((whole, failed), traces, strict=True):
        check_spans(trace["spans"], heard["steps"])
        (root,) = [span for span in trace["spans"] if span["name"] == CALL]
        assert base64.b64decode(root["trace_id"]).hex() == heard["trace_id"]
    assert len(whole["steps"]) == NUM_SEQUENCES * NUM_TOKENS

    (call,) = [span for span in traces[0]["spans"] if span["name"] == MODEL_CALL]
    assert call["attributes"]["mlflow.spanType"] == "LLM"
    assert call["attributes"]["gen_ai.request.model"] == "tiny"
    usage = traces[0]["trace_info"]["trace_metadata"]["mlflow.trace.tokenUsage"]
    assert f'"output_tokens": {NUM_SEQUENCES * NUM_TOKENS}' in usage
    assert traces[0]["trace_info"]["state"] == "OK"

    (call,) = [span for span in traces[1]["spans"] if span["name"] == MODEL_CALL]
    assert failed["finished"].finish_reason == g.FINISH_REASON_FAILED
    assert call["status"]["code"] == "STATUS_CODE_ERROR"
    assert call["status"]["message"] == failed["finished"].failure.message
