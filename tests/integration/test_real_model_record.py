"""The record of a real model's generations: spans, page, metrics, watching, resuming, deletion."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from long_generations import FROM_THE_BEGINNING
from otlp_collector import Collected, collecting
from server_process import ServerProcess
from span_reading import attributes, named
from waiting import wait_until

from whence import Client, FinishReason, NotFoundError
from whence.cli.main import main
from whence.v1.generation_pb2 import ResumeGenerationRequest
from whence.v1.generation_pb2_grpc import GenerationServiceStub

PROMPT = "The capital of France is"
LONG: Any = {"max_new_tokens": 24, "temperature": 0.8, "seed": 7, "ignore_eos": True}


@pytest.fixture(scope="module")
def collected() -> Iterator[tuple[Collected, str]]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def process(
    real_model: Path, collected: tuple[Collected, str], data_dir: Path
) -> Iterator[ServerProcess]:
    with ServerProcess(real_model, data_dir, "--otlp-endpoint", collected[1]) as process:
        yield process


@pytest.fixture
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed(process: ServerProcess) -> list[int]:
    """Token ids of the long generation, of which nothing is cut off."""
    with Client(process.target) as client, client.generate(PROMPT, **LONG) as generation:
        return [token.token_id for token in generation]


async def test_stream_record_spans_and_page_say_the_same(
    process: ServerProcess, client: Client, collected: tuple[Collected, str], tmp_path: Path
) -> None:
    with client.generate(
        PROMPT, greedy=True, max_new_tokens=6, detail="internals", num_candidates=4
    ) as generation:
        tokens = list(generation)
    ids = [token.token_id for token in tokens]
    first = tokens[0]
    assert first.internals is not None
    sources = {source.position: source.share for source in first.internals.sources}

    recorded = list(client.generations.steps(generation.id))
    assert [token.token_id for token in recorded] == ids
    assert [token.internals for token in recorded] == [token.internals for token in tokens]

    trace_id = bytes.fromhex(generation.trace_id)
    await wait_until(lambda: len(find_steps(collected[0], trace_id)) == len(ids))
    spans = [attributes(span) for span in find_steps(collected[0], trace_id)]
    assert [span["whence.token.id"] for span in spans] == ids
    positions = spans[0]["whence.source.positions"]
    shares = spans[0]["whence.source.shares"]
    assert dict(zip(positions, shares, strict=True)) == pytest.approx(sources)

    page = tmp_path / "page.html"
    command = ["generations", "show", generation.id, "--html", str(page)]
    assert main([*command, "--target", process.target]) == 0
    (record,) = re.findall(r'id="record">(.*?)</script>', page.read_text(encoding="utf-8"))
    (sequence,) = json.loads(record)["sequences"]
    assert "".join(step["text"] for step in sequence["steps"]) == generation.text
    assert generation.text.startswith(" Paris")


def find_steps(collected: Collected, trace_id: bytes) -> list[Any]:
    """Return the spans of a trace's tokens, in their order."""
    steps = [span for span in named(collected.spans, "decode_step") if span.trace_id == trace_id]
    return sorted(steps, key=lambda span: span.start_time_unix_nano)


def test_a_reader_that_left_resumes_where_it_was(
    process: ServerProcess, undisturbed: list[int]
) -> None:
    with Client(process.target) as client, client.generate(PROMPT, **LONG) as generation:
        stream = generation.events()
        seen: list[int] = []
        while len(seen) < 5:
            event = next(stream)
            seen += [step.token_id for step in event.steps.steps]
        # Another reader takes over from there.
        with grpc.insecure_channel(process.target) as channel:
            request = ResumeGenerationRequest(
                generation_id=generation.id, after_offset=event.last_offset
            )
            for response in GenerationServiceStub(channel).ResumeGeneration(request):
                seen += [step.token_id for step in response.event.steps.steps]
    assert seen == undisturbed


def test_a_cancelled_generation_keeps_what_it_had(client: Client, undisturbed: list[int]) -> None:
    options = LONG | {"max_new_tokens": 2_000}
    with client.generate(PROMPT, **options) as generation:
        seen = [next(generation) for _ in range(5)]
        client.cancel(generation.id)
        seen += list(generation)
    assert generation.finish_reason is FinishReason.CANCELLED
    ids = [token.token_id for token in seen]
    assert ids[: len(undisturbed)] == undisturbed[: len(ids)]
    assert [token.token_id for token in client.generations.steps(generation.id)] == ids
    (occurrence,) = client.generations.get(generation.id).occurrences
    assert occurrence.WhichOneof("occurrence") == "cancelled"


def test_a_generation_goes_on_after_the_engines_death(
    process: ServerProcess, client: Client, undisturbed: list[int]
) -> None:
    engine = process.engine_pid
    with client.generate(PROMPT, **LONG) as generation:
        ids = [next(generation).token_id for _ in range(5)]
        os.kill(engine, signal.SIGKILL)
        ids += [token.token_id for token in generation]
    assert ids == undisturbed
    kinds = [
        occurrence.WhichOneof("occurrence")
        for occurrence in client.generations.get(generation.id).occurrences
    ]
    assert kinds == ["engine_ended", "engine_resumed"]
    assert process.engine_pid != engine


def test_a_watcher_sees_what_is_deleted_later(process: ServerProcess, client: Client) -> None:
    labels, seen = {"test": "watch"}, []

    def watch() -> None:
        with (
            Client(process.target) as other,
            other.generations.watch(labels=labels, after_position=FROM_THE_BEGINNING) as updates,
        ):
            for update in updates:
                seen.append(update.event)
                if update.event.HasField("finished"):
                    return

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        with client.generate(PROMPT, greedy=True, max_new_tokens=4, labels=labels) as generation:
            ids = [token.token_id for token in generation]
        watching.result(60)
    assert seen[0].started.generation_id == generation.id
    assert [step.token_id for event in seen for step in event.steps.steps] == ids
    assert seen[-1].finished == generation.finished

    client.generations.delete(generation.id)
    with pytest.raises(NotFoundError, match="deleted"):
        client.generations.get(generation.id)
    assert not list(client.generations.list(labels=labels))


def test_the_journal_verifies_at_the_end_and_keeps_no_deleted_text(
    process: ServerProcess, client: Client, data_dir: Path
) -> None:
    secret = "The capital of Kyrgyzstan is"
    with client.generate(secret, greedy=True, max_new_tokens=4) as generation:
        generation.result()
    client.generations.delete(generation.id)
    assert process.terminate() == 0
    command = [sys.executable, "-m", "whence_server", "verify", "--data-dir"]
    checked = subprocess.run([*command, str(data_dir)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "intact" in checked.stdout
    for file in data_dir.rglob("*"):
        assert not file.is_file() or b"Kyrgyzstan" not in file.read_bytes(), file
