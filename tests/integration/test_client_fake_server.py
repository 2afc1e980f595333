"""Streams of the client from a server that breaks off, delays and refuses as it is told."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest
from client_fake_server import (
    CODES,
    NUM_EVENTS,
    RESUMED,
    TEXT,
    TOKEN_IDS,
    Break,
    FakeServer,
    Hold,
    batched,
    info,
    journal,
    steps,
)

import whence
from whence.v1 import generation_pb2 as pb


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[whence.Client]:
    with whence.Client(server.target) as connected:
        yield connected


def test_a_generation_from_its_first_token_to_its_end(server, client):
    with client.generate("The", max_new_tokens=5, labels={"a": "b"}) as generation:
        first = next(generation)
        assert (generation.text, generation.finish_reason) == ("Hello", None)
        tokens = [first, *generation]
    assert "".join(token.text for token in tokens) == TEXT == generation.text
    assert [token.token_id for token in tokens] == list(TOKEN_IDS)
    assert generation.finish_reason is whence.FinishReason.LENGTH
    assert generation.trace_id == "ab" * 16
    assert generation.sequences[0].token_ids == TOKEN_IDS
    (request,) = server.script.calls
    assert request.generation_id == generation.id
    assert request.decoding.max_new_tokens == 5


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, None])
@pytest.mark.parametrize("after", range(NUM_EVENTS))
def test_tokens_come_exactly_once_over_a_break_at_any_event(
    server, client, after, code, batch_size
):
    server.script.events = batched(journal(), batch_size)
    server.script.turns.append(Break(min(after, len(server.script.events) - 1), code))
    with client.generate("The") as generation:
        assert [token.token_id for token in generation] == list(TOKEN_IDS)
    assert generation.text == TEXT
    assert len(server.script.calls) == 2


@pytest.mark.parametrize("after", range(NUM_EVENTS))
async def test_tokens_come_exactly_once_over_a_break_at_any_event_async(server, after):
    server.script.turns.append(Break(after))
    async with (
        whence.AsyncClient(server.target) as client,
        client.generate("The") as generation,
    ):
        assert [token.token_id async for token in generation] == list(TOKEN_IDS)
    assert len(server.script.calls) == 2


@pytest.mark.parametrize("code", RESUMED)
def test_tokens_come_exactly_once_over_any_status_of_a_proxy(server, client, code):
    server.script.turns.extend([Break(0, code), Break(3, code), Break(1, code)])
    with client.generate("The", timeout_s=30.0) as generation:
        assert [token.token_id for token in generation] == list(TOKEN_IDS)
    assert len(server.script.calls) == 4


@pytest.mark.parametrize("code", RESUMED)
async def test_tokens_come_exactly_once_over_any_status_of_a_proxy_async(server, code):
    server.script.turns.extend([Break(0, code), Break(3, code), Break(1, code)])
    async with (
        whence.AsyncClient(server.target) as client,
        client.generate("The", timeout_s=30.0) as generation,
    ):
        assert [token.token_id async for token in generation] == list(TOKEN_IDS)
    assert len(server.script.calls) == 4


@pytest.mark.parametrize("code", [c for c in CODES if c is not grpc.StatusCode.UNAVAILABLE])
def test_an_error_of_the_server_itself_ends_the_stream(server, client, code):
    server.script.turns.append(Break(3, code, (info("WHY"),)))
    with pytest.raises(whence.WhenceError) as raised:
        client.generate("The").result()
    assert (raised.value.origin, raised.value.reason) == (whence.Origin.SERVER, "WHY")
    assert len(server.script.calls) == 1


def test_a_resume_waits_for_the_server_that_has_the_generation(server, client):
    elsewhere = Break(0, grpc.StatusCode.NOT_FOUND, (info("GENERATION_NOT_FOUND"),))
    server.script.turns.extend([Break(3), elsewhere, elsewhere])
    with client.generate("The") as generation:
        assert [token.token_id for token in generation] == list(TOKEN_IDS)
    deleted = Break(0, grpc.StatusCode.NOT_FOUND, (info("GENERATION_DELETED"),))
    server.script.turns.extend([Break(3), deleted])
    with pytest.raises(whence.NotFoundError), client.generate("The") as generation:
        list(generation)


def test_tokens_that_the_server_lost_are_counted(server, client):
    server.script.recorded = journal(steps()[:2], reason=pb.FINISH_REASON_INTERRUPTED)
    server.script.turns.append(Break(5))
    with client.generate("The") as generation:
        shown = [next(generation)]
        assert generation.num_unrecorded_tokens == 0
        shown += generation
    assert [token.token_id for token in shown] == list(TOKEN_IDS[:4])
    assert generation.num_unrecorded_tokens == 2
    assert generation.finish_reason is whence.FinishReason.INTERRUPTED
    assert generation.sequences[0].token_ids == TOKEN_IDS[:2]


def test_a_break_after_every_single_event(server, client):
    server.script.turns.extend([Break(1)] * (NUM_EVENTS - 1))
    with client.generate("The") as generation:
        offsets = [event.first_offset for event in generation.events()]
    assert offsets == list(range(1, NUM_EVENTS + 1))
    resumed = server.script.requests(pb.ResumeGenerationRequest)
    assert [request.after_offset for request in resumed] == list(range(1, NUM_EVENTS))


def test_a_break_before_the_start_repeats_the_same_call(server, client):
    server.script.turns.extend([Break(0), Break(0, None)])
    client.generate("The", temperature=0.5, labels={"b": "1", "a": "2"}).result()
    first, *others = server.script.calls
    assert others == [first, first]


def test_a_refused_resume_is_raised_and_nothing_is_cancelled(server, client):
    server.script.turns.extend([Break(2), Break(0, grpc.StatusCode.NOT_FOUND)])
    with (
        pytest.raises(whence.NotFoundError, match="scripted"),
        client.generate("The") as generation,
    ):
        list(generation)
    assert not server.script.cancelled.is_set()
    assert generation.text == "Hello"


def test_a_server_that_restarts_is_found_again(server):
    server.script.turns.append(Hold(3))
    with whence.Client(server.target) as client, client.generate("The") as generation:
        tokens = [next(generation), next(generation)]
        server.restart()
        tokens += generation
    assert [token.token_id for token in tokens] == list(TOKEN_IDS)


def test_giving_up_on_a_server_that_stays_away(server):
    server.script.turns.extend([Break(1), *[Break(0)] * 100])
    with (
        whence.Client(server.target, resume_timeout_s=0.2) as client,
        pytest.raises(whence.UnavailableError),
        client.generate("The") as generation,
    ):
        list(generation)


def test_a_server_that_is_not_there():
    with (
        whence.Client("unix:/nonexistent/socket", connect_timeout_s=0.1) as client,
        pytest.raises(whence.UnavailableError),
    ):
        client.generate("The").result()


def test_a_missing_event_is_never_passed_over_in_silence(server, client):
    del server.script.events[2]
    with client.generate("The") as generation, pytest.raises(whence.InternalError, match="missing"):
        list(generation)


def test_leaving_early_cancels_on_the_server(server, client):
    server.script.turns.append(Hold(3))
    with client.generate("The") as generation:
        assert next(generation).text == "Hello"
    assert server.script.cancelled.is_set()
    (cancel,) = server.script.requests(pb.CancelGenerationRequest)
    assert cancel.generation_id == generation.id
    assert list(generation) == [], "a closed generation brings nothing more"


async def test_leaving_early_cancels_on_the_server_async(server):
    server.script.turns.append(Hold(3))
    async with whence.AsyncClient(server.target) as client:
        async with client.generate("The") as generation:
            assert (await anext(generation)).text == "Hello"
        assert server.script.cancelled.is_set()


def test_closing_from_another_thread_ends_the_iteration(server, client):
    server.script.turns.append(Hold(3))
    generation = client.generate("The")
    next(generation), next(generation)
    closer = threading.Timer(0.05, generation.close)
    closer.start()
    assert list(generation) == []
    closer.join()


async def test_closing_from_another_task_ends_the_iteration(server):
    server.script.turns.append(Hold(3))
    async with whence.AsyncClient(server.target) as client:
        generation = client.generate("The")
        await anext(generation)
        await anext(generation)
        waiting = asyncio.create_task(anext(generation, None))
        await asyncio.sleep(0)
        await generation.close()
        assert await waiting is None


def test_a_finished_generation_is_not_cancelled(server, client):
    with client.generate("The") as generation:
        generation.result()
    assert not server.script.cancelled.is_set()


def test_the_timeout_ends_the_reading_and_then_the_generation(server, client):
    server.script.turns.append(Hold(2))
    with (
        pytest.raises(whence.DeadlineExceededError),
        client.generate("The", timeout_s=0.2) as generation,
    ):
        list(generation)
    assert server.script.cancelled.is_set()


def test_a_failed_generation_raises_after_its_last_token(server, client):
    failure = pb.Failure(code=13, reason="NON_FINITE_LOGITS", message="logits are NaN")
    server.script.events = journal(reason=pb.FINISH_REASON_FAILED, failure=failure)
    seen = []
    generation = client.generate("The")
    with pytest.raises(whence.GenerationFailedError, match="NaN") as raised:
        seen.extend(generation)
    assert [token.token_id for token in seen] == list(TOKEN_IDS)
    assert generation.text == TEXT
    assert (raised.value.reason, raised.value.code) == ("NON_FINITE_LOGITS", whence.Code.INTERNAL)
    with pytest.raises(whence.GenerationFailedError):
        client.generate("The").result()


def test_the_client_runs_without_the_servers_packages(server):
    program = f"""
import sys
BLOCKED = {{"torch", "transformers", "numpy", "opentelemetry", "apsw", "tokenizers", "jinja2"}}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED | {{"whence_server"}}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocker())
import whence, whence.cli.main
for name in whence.__all__:
    getattr(whence, name)
with whence.Client({server.target!r}) as client:
    print(client.generate("The").result().text, end="")
"""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", program],
        capture_output=True, text=True, encoding="utf-8", timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (TEXT, "")
