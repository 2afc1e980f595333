"""The client against a server that breaks off, delays and refuses as it is told."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest
from client_fake_server import (
    TOKEN_IDS,
    VOCABULARY,
    Break,
    FakeServer,
    Hold,
    batched,
    journal,
    steps,
)
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import whence
from whence.errors import ERRORS
from whence.v1 import generation_pb2 as pb
from whence.v1 import model_pb2, trace_pb2

TEXT = b"".join(VOCABULARY[token_id] for token_id in TOKEN_IDS).decode()
NUM_EVENTS = len(TOKEN_IDS) + 2
CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
RESUMED = [
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
]
"""Statuses, besides UNAVAILABLE, with which proxies end a stream that broke."""


def info(reason: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="whence.v1")


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


@pytest.mark.parametrize("code", CODES)
def test_every_status_has_its_error(server, client, code):
    details = (
        error_details_pb2.ErrorInfo(reason="WHY", domain="whence.v1", metadata={"key": "value"}),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="model", description="bad")
            ]
        ),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
    )
    server.script.refusals.append(Break(0, code, details))
    with pytest.raises(whence.WhenceError) as raised:
        client.model()
    error = raised.value
    assert type(error) is ERRORS[whence.Code(code.value[0])]
    assert error.code == code.value[0]
    assert (error.reason, error.metadata) == ("WHY", {"key": "value"})
    assert error.violations == (whence.FieldViolation("model", "bad"),)
    assert error.retry_delay_s == 1.5
    assert error.message == f"scripted {code.name}"


async def test_the_asynchronous_client_raises_errors_by_status(server):
    full = Break(0, grpc.StatusCode.RESOURCE_EXHAUSTED, (info("QUEUE_FULL"),))
    server.script.turns.append(full)
    server.script.refusals.append(Break(0, grpc.StatusCode.NOT_FOUND))
    async with whence.AsyncClient(server.target) as client:
        with pytest.raises(whence.ResourceExhaustedError) as raised:
            await client.generate("The").result()
        assert raised.value.reason == "QUEUE_FULL"
        with pytest.raises(whence.NotFoundError):
            await client.cancel("unknown")


def test_candidates_get_their_text_from_one_vocabulary(server, client):
    tokens = [*client.generate("The"), *client.generate("The")]
    assert not server.script.requests(model_pb2.GetVocabularyRequest), "fetched only when needed"
    assert [candidate.text for candidate in tokens[0].candidates] == ["Hello", "<0xC3>"]
    assert tokens[-1].token_text == " 中"
    assert client.vocabulary().bytes_of(5) == b"\xc3"
    assert len(server.script.requests(model_pb2.GetVocabularyRequest)) == 1


def test_a_vocabulary_is_whole_over_any_break(server, client):
    server.script.turns.extend(Break(after, RESUMED[after]) for after in range(3))
    assert tuple(client.vocabulary()) == VOCABULARY
    assert len(server.script.requests(model_pb2.GetVocabularyRequest)) == 4
    server.script.turns.append(Break(1, grpc.StatusCode.NOT_FOUND, (info("MODEL_NOT_FOUND"),)))
    with whence.Client(server.target) as other, pytest.raises(whence.NotFoundError):
        other.vocabulary()


async def test_a_vocabulary_is_whole_over_any_break_async(server):
    server.script.turns.extend(Break(after, RESUMED[after]) for after in range(3))
    async with whence.AsyncClient(server.target) as client:
        assert tuple(await client.vocabulary()) == VOCABULARY


async def test_the_asynchronous_client_needs_a_fetched_vocabulary_for_texts(server):
    async with whence.AsyncClient(server.target) as client:
        token = await anext(client.generate("The"))
        with pytest.raises(whence.FailedPreconditionError, match=r"await client.vocabulary"):
            _ = token.candidates[0].text
        both = await asyncio.gather(client.vocabulary(), client.vocabulary("fake"))
        assert token.candidates[0].text == "Hello"
    assert both[0] is both[1]
    assert len(server.script.requests(model_pb2.GetVocabularyRequest)) == 1


def test_metadata_reaches_the_server(server):
    with whence.Client(server.target, metadata={"authorization": "x"}) as client:
        client.generate("The", metadata={"traceparent": "00-a-b-01"}).result()
        client.models()
    generate, models = server.script.metadata
    assert (generate["authorization"], generate["traceparent"]) == ("x", "00-a-b-01")
    assert models["authorization"] == "x"


def test_the_synchronous_client_reads_recorded_generations(server, client):
    listed = client.generations.list(labels={"k": "v"}, page_size=2)
    assert [summary.generation_id for summary in listed] == [
        "g00",
        "g01",
        "g10",
        "g11",
        "g20",
        "g21",
    ]
    requests = server.script.requests(trace_pb2.ListGenerationsRequest)
    assert [request.page_token for request in requests] == ["", "1", "2"]
    assert all(request.filter.labels == {"k": "v"} for request in requests)
    assert client.generations.get("g").finished.num_generated_tokens == len(TOKEN_IDS)
    recorded = list(client.generations.steps("g"))
    assert [token.token_id for token in recorded] == list(TOKEN_IDS)
    assert recorded[0].processors[0].name == "temperature"
    client.generations.delete("g")
    assert server.script.requests(trace_pb2.DeleteGenerationRequest)


async def test_the_asynchronous_client_reads_recorded_generations(server):
    async with whence.AsyncClient(server.target) as client:
        listed = [summary.generation_id async for summary in client.generations.list()]
        recorded = [token.token_id async for token in client.generations.steps("g")]
        assert (await client.generations.get("g")).summary.generation_id == "g"
        assert [model.model for model in await client.models()] == ["fake"]
        await client.generations.delete("g")
    assert len(listed) == 6
    assert recorded == list(TOKEN_IDS)


def test_a_watch_goes_on_from_its_last_position(server, client):
    server.script.turns.extend([Break(2), Break(0, RESUMED[5]), Break(1), Hold(NUM_EVENTS - 3)])
    with client.generations.watch(lifecycle_only=True) as watched:
        positions = [next(watched).position for _ in range(NUM_EVENTS)]
    assert positions == [str(offset) for offset in range(1, NUM_EVENTS + 1)]
    after = [r.after_position for r in server.script.requests(trace_pb2.WatchGenerationsRequest)]
    assert after == ["", "2", "2", "3"]


async def test_a_watch_goes_on_from_its_last_position_async(server):
    server.script.turns.extend([Break(2, RESUMED[0]), Hold(NUM_EVENTS - 2)])
    async with (
        whence.AsyncClient(server.target) as client,
        client.generations.watch() as watched,
    ):
        positions = [(await anext(watched)).position for _ in range(NUM_EVENTS)]
    assert positions == [str(offset) for offset in range(1, NUM_EVENTS + 1)]


# ---- the command ----


def command(server: FakeServer | str, *arguments: str, **environment: str):
    target = server if isinstance(server, str) else server.target
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("NO_COLOR", "WHENCE_"))}
    return subprocess.run(
        [sys.executable, "-m", "whence.cli", *arguments],
        env={**plain, "WHENCE_TARGET": target, "PYTHONUTF8": "1", **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_the_command_prints_the_text_and_sums_it_up(server):
    done = command(server, "generate", "The", "--seed", "1", "--label", "a=b", "--stop", "x")
    assert (done.returncode, done.stdout) == (0, TEXT + "\n")
    assert "5 tokens" in done.stderr
    assert "finished: length" in done.stderr
    assert "ab" * 16 in done.stderr
    (request,) = server.script.calls
    assert (request.decoding.sample.seed, list(request.decoding.stop)) == (1, ["x"])
    assert request.labels == {"a": "b"}


def test_the_command_prints_json(server):
    done = command(server, "generate", "The", "--json")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [fields["event"] for fields in objects] == ["started", *["token"] * 5, "finished"]
    assert objects[1] == {
        "event": "token",
        "sequence_index": 0,
        "index": 0,
        "token_id": 1,
        "text": "Hello",
        "text_begin_byte": 0,
        "text_end_byte": 5,
        "logprob": -0.6931472,
        "sampling_logprob": -0.2876821,
        "rank": 0,
        "entropy": 1.25,
        "candidates": [
            {
                "token_id": 1,
                "text": "Hello",
                "logprob": -0.6931472,
                "sampling_logprob": -0.2876821,
            },
            {"token_id": 5, "text": "<0xC3>", "logprob": -1.3862944, "sampling_logprob": None},
        ],
        "processors": [
            {"name": "temperature", "num_kept": 4, "removed_mass": 0.25, "token_logprob": -0.5}
        ],
        "draw": {"noise": 0.125, "margin": 2.0},
        "timing": {
            "elapsed_ns": 1,
            "forward_ns": 2,
            "select_ns": 3,
            "batch_size": 4,
            "context_length": 5,
        },
    }
    assert objects[-1]["finish_reason"] == "length"
    assert objects[-1]["sequences"][0]["text"] == TEXT
    assert done.stdout.isascii()


def test_the_command_warns_of_tokens_that_the_server_lost(server):
    server.script.recorded = journal(steps()[:2], reason=pb.FINISH_REASON_INTERRUPTED)
    server.script.turns.append(Break(5))
    done = command(server, "generate", "The", "--json", "--quiet")
    assert done.returncode == 1
    assert done.stderr.startswith("warning: the last 2 tokens are not on record")
    *tokens, finished = [json.loads(line) for line in done.stdout.splitlines()]
    assert [fields["event"] for fields in tokens] == ["started", *["token"] * 4]
    assert (finished["num_generated_tokens"], finished["num_unrecorded_tokens"]) == (2, 2)
    server.script.turns.append(Break(5))
    assert command(server, "generate", "The").stderr.count("warning") == 1


def test_the_command_warns_of_a_generation_that_is_not_on_record(server):
    server.script.events[0].started.unrecorded_reason = "JOURNAL_FULL"
    told = command(server, "generate", "The", "--quiet").stderr
    assert told.startswith("warning: this generation is not on record")
    assert "(JOURNAL_FULL)" in told
    started, *_ = command(server, "generate", "The", "--json").stdout.splitlines()
    assert json.loads(started)["unrecorded_reason"] == "JOURNAL_FULL"


def test_colour_is_asked_for_and_refused(server):
    assert "\x1b[38;5;" in command(server, "generate", "The", "--color", "always").stdout
    assert "\x1b" not in command(server, "generate", "The").stdout
    assert "\x1b" not in command(server, "generate", "The", "--color", "never").stdout


def test_control_characters_do_not_reach_the_terminal(server):
    server.script.events = journal(steps((1, 4, 2)))
    done = command(server, "generate", "The", "--color", "never")
    assert done.stdout == "Hello\\x1b[31m world\n"
    assert "\x1b" not in command(server, "generations", "list").stdout


def test_candidates_are_a_table(server):
    done = command(server, "generate", "The", "--candidates")
    heading, first, *_ = done.stdout.splitlines()
    assert heading.split() == ["token", "p", "rank", "runners-up"]
    assert first.split() == ["0/0", '"Hello"', "50.0%", "0", '"<0xC3>"', "25.0%"]


def test_exit_status_tells_failures_apart(server):
    failure = pb.Failure(code=13, reason="NON_FINITE_LOGITS", message="logits are NaN")
    server.script.events = journal(reason=pb.FINISH_REASON_FAILED, failure=failure)
    for form in ([], ["--json"]):
        failed = command(server, "generate", "The", *form)
        assert failed.returncode == 1
        assert "failed" in failed.stderr
    for code, status in (
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.INTERNAL, 1),
    ):
        server.script.turns.append(Break(0, code))
        assert command(server, "generate", "The").returncode == status
    contradiction = command(server, "generate", "The", "--greedy", "--top-k", "3")
    assert contradiction.returncode == 2
    assert "`greedy`" in contradiction.stderr
    assert "`top_k`" in contradiction.stderr
    nobody = command("unix:/nonexistent/socket", "generate", "x", "--connect-timeout", "0.1")
    assert nobody.returncode == 3
    assert command("nowhere", "model").returncode == 2


def test_the_summary_ends_with_a_link_to_the_trace(server):
    page = {"WHENCE_TRACE_URL": "http://localhost:16686/trace/{trace_id}"}
    link = "http://localhost:16686/trace/" + "ab" * 16
    assert command(server, "generate", "The", **page).stderr.splitlines()[-1] == link
    assert link not in command(server, "generate", "The", "--quiet", **page).stderr
    other = ["--trace-url", "https://h/{trace_id}?q={x}"]
    ours = command(server, "generate", "The", *other, **page)
    assert ours.stderr.splitlines()[-1] == f"https://h/{'ab' * 16}?q={{x}}"
    assert "http" not in command(server, "generate", "The", "--trace-url", "", **page).stderr
    wrong = command(server, "generate", "The", WHENCE_TRACE_URL="http://localhost:16686/trace/")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "$WHENCE_TRACE_URL 'http://localhost:16686/trace/' does not say where" in wrong.stderr
    server.script.events[0].started.trace_flags = 0  # no span is made of it
    assert "http" not in command(server, "generate", "The", **page).stderr


def test_the_command_lists_shows_and_deletes_recorded_generations(server):
    listed = command(server, "generations", "list", "--json", "--limit", "3", "--label", "k=v")
    ids = [json.loads(line)["generation_id"] for line in listed.stdout.splitlines()]
    assert ids == ["g00", "g01", "g10"]
    shown = command(server, "generations", "show", "g", "--steps")
    assert TEXT in shown.stdout
    assert '" world"' in shown.stdout
    as_json = command(server, "generations", "show", "g", "--steps", "--json").stdout.splitlines()
    assert json.loads(as_json[0])["summary"]["generation_id"] == "g"
    assert json.loads(as_json[1])["token_id"] == TOKEN_IDS[0]
    assert command(server, "generations", "delete", "g").returncode == 2
    assert not server.script.requests(trace_pb2.DeleteGenerationRequest)
    assert command(server, "generations", "delete", "g", "--yes").returncode == 0
    assert server.script.requests(trace_pb2.DeleteGenerationRequest)
    assert "fake" in command(server, "model").stdout
    assert json.loads(command(server, "model", "--json").stdout)["tokenizer_digest"] == "t1"


@pytest.mark.parametrize("arguments", [["generate", "The"], ["generations", "watch", "--json"]])
def test_an_interrupt_ends_the_command(server, arguments):
    server.script.turns.append(Hold(2))
    running = subprocess.Popen(
        [sys.executable, "-m", "whence.cli", *arguments, "--target", server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with running:
        assert running.stdout.read(5)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert running.returncode == 130, (stdout, stderr)
    assert b"Traceback" not in stderr
    assert server.script.cancelled.is_set() == (arguments[0] == "generate")


def test_a_reader_that_goes_away_ends_the_command_quietly(server):
    server.script.turns.append(Hold(4))
    running = subprocess.Popen(
        [sys.executable, "-m", "whence.cli", "generate", "x", "--json", "--target", server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.stdout.close()
    with running:
        stderr = running.stderr.read()
    assert (running.returncode, stderr) == (141, b"")
    assert server.script.cancelled.is_set()


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
