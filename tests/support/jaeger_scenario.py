"""A server that generates in all ways, and while the Collector and Jaeger are killed."""

import argparse
import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import torch
from backend_process import wait_for_answer
from calling_service import call_from_service
from deployed import Collector, Jaeger, free_address, read_environment
from jaeger_reading import SERVICE
from server_process import ServerProcess
from span_record import Record, read_record
from tiny_models import save_model_that_breaks
from transformers import AutoModelForCausalLM

import whence
from whence.summary import TokenNames, make_text_names
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc
from whence_server.config import add_arguments, make_serve_config

MODEL = "demo"
"""MODEL_NAME of compose.yaml."""
BROKEN_POSITION = 1_500
NUM_STEP_SPANS = 1_000
"""WHENCE_STEP_SPANS of compose.yaml."""
NUM_OTHER_CALLS = 3
"""A resumption, a refused request, and another service's call."""
NUM_KILLS = 4
"""Two of the Collector, two of Jaeger."""


def make_request(
    num_tokens: int | None, *, tokens: int = 0, trace: g.TraceOptions | None = None, **options: Any
) -> g.GenerateRequest:
    """Make a request of a text, or of a number of prompt tokens."""
    decoding = g.Decoding(max_new_tokens=num_tokens, ignore_eos=True, **options)
    request = g.GenerateRequest(decoding=decoding, trace=trace, labels={"tenant": "a"})
    if tokens:
        request.tokens.token_ids.extend([7] * tokens)
    else:
        request.prompt = "The quick brown fox"
    return request


SAMPLE = g.Sample(seed=1, temperature=0.8, top_p=0.9)
REQUESTS = {
    "greedy": make_request(12, greedy=g.Greedy()),
    "sampled": make_request(12, sample=SAMPLE, stop=["\n\n\n"]),
    "four sequences": make_request(12, sample=SAMPLE, num_return_sequences=4),
    "beams": make_request(8, beam_search=g.BeamSearch(num_beams=3), num_return_sequences=2),
    "forced": make_request(None, forced=g.Forced(text=" jumps over the lazy dog")),
    "internals": make_request(
        6, sample=SAMPLE, trace=g.TraceOptions(detail=g.TRACE_DETAIL_INTERNALS)
    ),
    "beyond the step spans": make_request(NUM_STEP_SPANS + 40, sample=SAMPLE),
    "failing": make_request(20, sample=SAMPLE, tokens=BROKEN_POSITION - 10),
}
ENDLESS = make_request(6_000, sample=SAMPLE)


@dataclass(frozen=True)
class Seen:
    """The server's own record of what took place, and the backends, which still run."""

    jaeger: Jaeger
    kept: Jaeger
    """With Badger, for the generations during which programs were killed."""
    collector: Collector
    record: Record
    generations: dict[str, str]
    """Their ids, by the kinds of REQUESTS and "cancelled", ..."""
    disturbed: list[str]
    """Ids of the generations during which programs were killed."""
    names: TokenNames
    """Names of the model's tokens, by the server's vocabulary."""
    callers_trace_id: str
    """The trace that another service's span began."""

    def get_trace_id(self, kind: str) -> str:
        """Return the trace id of a generation."""
        return self.record.started[self.generations[kind]].trace_id

    def list_undisturbed(self) -> list[str]:
        """Return the ids of the traces that went to the Jaeger that holds them in memory."""
        disturbed = {self.record.started[it].trace_id for it in self.disturbed}
        return [trace_id for trace_id in self.record.traces if trace_id not in disturbed]


@contextlib.contextmanager
def run_scenario(directory: Path) -> Iterator[Seen]:
    """Run everything, and yield what took place with the backends still running."""
    jaeger, kept = Jaeger(directory / "jaeger"), Jaeger(directory / "kept", keep=True)
    collector = Collector(directory / "collector", jaeger)
    model = _save_model(directory / "model")
    data_dir, metrics = directory / "data", free_address()
    environment = read_environment(
        {
            "/model": str(model),
            "0.0.0.0:50051": free_address(),
            "0.0.0.0:9464": metrics,
            "/data": str(data_dir),
            "http://collector:4317": f"http://{collector.otlp}",
        }
    )
    listen = ("--listen", environment["WHENCE_LISTEN"])
    with contextlib.ExitStack() as running:
        for program in (jaeger, kept, collector):
            running.callback(program.kill)
        jaeger.start()
        collector.start()
        with ServerProcess(model, data_dir, *listen, environment=environment) as server:
            health = f"http://{metrics}/healthz"
            with whence.Client(server.target) as client:
                names = make_text_names(client.vocabulary().text_of)
            generations = asyncio.run(_generate_all(server.target))
            callers_trace_id = call_from_service(server.target, collector.http)
            asyncio.run(_wait_calls(jaeger, len(generations) + NUM_OTHER_CALLS))
            collector.kill()
            collector.send_to(kept)
            kept.start()
            collector.start()
            disturbed = asyncio.run(_kill_and_generate(server.target, health, [collector, kept]))
            # It may end without having sent everything, if that takes longer than some seconds.
            asyncio.run(_wait_exported(health, lambda spans: spans["entries_behind"] == 0))
            asyncio.run(_wait_calls(kept, len(disturbed)))
            assert server.terminate() == 0
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        settings = make_serve_config(parser.parse_args([]), environment)
        record = asyncio.run(read_record(data_dir, settings))
        yield Seen(jaeger, kept, collector, record, generations, disturbed, names, callers_trace_id)


def _save_model(directory: Path) -> Path:
    """Write a model that fails at a position, and whose likeliest tokens are likely."""
    model = AutoModelForCausalLM.from_pretrained(
        save_model_that_breaks(directory, "gpt2-long", BROKEN_POSITION)
    )
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(20.0)
    model.save_pretrained(directory)
    return directory


async def _wait_calls(jaeger: Jaeger, num_calls: int) -> None:
    """Wait until Jaeger has the spans of all calls, each the last of what the call did."""

    def has_all(answer: dict[str, Any]) -> bool:
        kinds = [
            tag["value"]
            for trace in answer["data"]
            for span in trace["spans"]
            if trace["processes"][span["processID"]]["serviceName"] == SERVICE
            for tag in span["tags"]
            if tag["key"] == "span.kind"
        ]
        return kinds.count("server") == num_calls

    async with aiohttp.ClientSession() as session:
        traces, query = f"{jaeger.page}/api/traces", {"service": SERVICE, "limit": "100"}
        await wait_for_answer(session, has_all, "GET", traces, params=query)


async def _generate_all(target: str) -> dict[str, str]:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        generations = {name: await _generate(stub, it) for name, it in REQUESTS.items()}
        generations["cancelled"] = await _generate(stub, ENDLESS, cancel_after=3)
        generations["stopped"] = await _generate(stub, ENDLESS, stop_after=3)
        lasting = make_request(200, sample=SAMPLE)
        lasting.disconnect_grace.FromSeconds(60)
        generations["resumed"] = await _generate(stub, lasting, cancel_after=3)
        resumed = stub.ResumeGeneration(
            g.ResumeGenerationRequest(generation_id=generations["resumed"])
        )
        assert [it async for it in resumed][-1].event.HasField("finished")
        with contextlib.suppress(grpc.aio.AioRpcError):
            await _generate(stub, g.GenerateRequest())
            raise AssertionError("a request without input was not refused")
    return generations


async def _generate(
    stub: Any, request: g.GenerateRequest, *, cancel_after: int = 0, stop_after: int = 0
) -> str:
    """Generate, until a number of steps if one is given; return the generation's id."""
    generation_id, num_steps = "", 0
    call = stub.Generate(request)
    async for response in call:
        generation_id = response.event.started.generation_id or generation_id
        num_steps += len(response.event.steps.steps)
        if cancel_after and num_steps >= cancel_after:
            call.cancel()
            break
        if stop_after and num_steps >= stop_after:
            await stub.CancelGeneration(g.CancelGenerationRequest(generation_id=generation_id))
            stop_after = 0
    return generation_id


async def _kill_and_generate(target: str, health: str, programs: list[Any]) -> list[str]:
    """Generate without a pause while programs are killed in turn; return the generations' ids."""
    generations: list[str] = []
    killed = asyncio.Event()

    async def keep_generating() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            while not killed.is_set():
                request = make_request(NUM_STEP_SPANS, sample=SAMPLE)
                generations.append(await _generate(stub, request))

    generating = asyncio.create_task(keep_generating())
    for program in itertools.islice(itertools.cycle(programs), NUM_KILLS):
        before = await _wait_exported(health, lambda spans: not spans["retrying"])
        num_before = before["exported"]
        await _wait_exported(health, lambda spans, num=num_before: spans["exported"] > num)
        program.kill()
        await _wait_exported(health, lambda spans: spans["retrying"])
        program.start()
    killed.set()
    await generating
    return generations


async def _wait_exported(health: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the state of the export is as wanted, and return it."""
    async with aiohttp.ClientSession() as session:
        answer = await wait_for_answer(
            session, lambda it: wanted(it["consumers"]["otlp-spans"]), "GET", health
        )
    return dict(answer["consumers"]["otlp-spans"])
