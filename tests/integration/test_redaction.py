"""Redaction on a real server: nothing redacted is stored, exported or shown to others."""

import json
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from folders import read_folder
from otlp_collector import Collected, collecting
from server_process import ServerProcess

from whence import Client
from whence.cli.main import main as client_main
from whence.v1 import generation_pb2 as g
from whence.v1 import trace_pb2
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.trace_pb2_grpc import TraceServiceStub
from whence_server.cli import main

MAIL, CARD, KEY = "zelda.fitz@corp.example", "4111 1111 1111 1111", "ghp_16C7e42F292c6912E7710c8"
OWN = "C-87654321"
PARTS = [b"zelda", b"corp.example", b"4111 1111", b"41111111", b"16C7e42F", b"87654321"]
OUTPUT = f"Yes: {MAIL}, {CARD} and {KEY}, of {OWN}."
MARKED = "Yes: [mail], [card] and [key], of [customer]."
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def make_requests() -> list[g.GenerateRequest]:
    """Return requests with something to redact in every place that a request has for it."""
    forced = g.Decoding(forced=g.Forced(text=OUTPUT))
    chat = g.ChatInput(
        messages=[
            g.ChatMessage(role="system", content=f"You write to {MAIL}."),
            g.ChatMessage(role="assistant", content=CARD, reasoning_content=KEY),
            g.ChatMessage(role="user", content_parts=[g.ContentPart(text=OWN)]),
        ],
        template_arguments_json=json.dumps({"to": [MAIL], "card": int(CARD.replace(" ", ""))}),
    )
    stopped = g.Decoding(forced=g.Forced(text=OUTPUT), stop=[KEY])
    two = g.Decoding(sample=g.Sample(seed=7), num_return_sequences=2, max_new_tokens=20)
    two.bad_words.append(MAIL)
    search = g.Decoding(beam_search=g.BeamSearch(num_beams=2), max_new_tokens=4)
    made = [
        g.GenerateRequest(prompt=f"Who is {MAIL}?", decoding=forced),
        g.GenerateRequest(chat=chat, decoding=forced),
        g.GenerateRequest(prompt=OWN, decoding=stopped),
        g.GenerateRequest(prompt="Nothing", decoding=two),
        g.GenerateRequest(prompt=CARD, decoding=search),
    ]
    for request in made:
        request.generation_id = str(uuid.uuid4())
        request.trace.prompt = True
        request.trace.num_candidates = 4
        request.labels["customer"] = OWN
    return made


def generate(stub: GenerationServiceStub, request: g.GenerateRequest) -> list[g.GenerationEvent]:
    return [it.event for it in stub.Generate(request) if not it.event.HasField("progress")]


class Run(NamedTuple):
    """Everything that a server took, gave and left."""

    streams: list[list[g.GenerationEvent]]
    watched: list[trace_pb2.WatchGenerationsResponse]
    collected: Collected
    directory: Path
    server: ServerProcess

    @property
    def ids(self) -> list[str]:
        return [events[0].started.generation_id for events in self.streams]


@pytest.fixture(scope="module")
def run(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A server that redacts everything, after its requests; spans may carry content."""
    directory = tmp_path_factory.mktemp("redaction")
    patterns = tmp_path_factory.mktemp("patterns") / "patterns.toml"
    patterns.write_text("[patterns]\ncustomer = '\\bC-[0-9]{8}\\b'\n")
    flags = ["--redact", "all", "--redact-patterns", str(patterns), "--log-level", "debug"]
    flags += ["--http-listen", "127.0.0.1:0", "--step-span-names", "token", "--token-arrays", "64"]
    flags += ["--step-form", "both", "--model-name", "tiny", "--progress-interval", "0.2"]
    with collecting() as (collected, endpoint):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, CAPTURE: "SPAN_AND_EVENT"}
        with (
            ServerProcess(tiny_model("gpt2"), directory, *flags, environment=environment) as server,
            grpc.insecure_channel(server.target) as channel,
        ):
            watch = TraceServiceStub(channel).WatchGenerations(trace_pb2.WatchGenerationsRequest())
            watched: list[trace_pb2.WatchGenerationsResponse] = []

            def keep_watch() -> None:
                num_finished = 0
                for response in watch:
                    watched.append(response)
                    num_finished += response.event.HasField("finished")
                    if num_finished == len(make_requests()):
                        return

            # The watch begins with the next event: its first position tells that it listens.
            assert not next(watch).HasField("event")
            watching = threading.Thread(target=keep_watch)
            watching.start()
            stub = GenerationServiceStub(channel)
            streams = [generate(stub, request) for request in make_requests()]
            watching.join(60)
            assert not watching.is_alive()
            yield Run(streams, watched, collected, directory, server)


def find_parts(content: bytes) -> list[bytes]:
    return [part for part in PARTS if part in content]


def test_the_callers_stream_is_whole(run: Run) -> None:
    for events, request in zip(run.streams, make_requests(), strict=True):
        started, finished = events[0].started, events[-1].finished
        assert dict(started.labels) == {"customer": OWN}
        assert started.prompt_token_ids
        assert not started.redactions
        for result in finished.sequences:
            steps = [
                s
                for e in events
                for s in e.steps.steps
                if s.sequence_index == result.sequence_index
            ]
            assert [step.token_id for step in steps] == list(result.token_ids)
            assert all(step.HasField("logprob") and not step.redactions for step in steps)
        if request.decoding.stop:
            assert finished.sequences[0].text == OUTPUT.partition(KEY)[0]
        elif request.decoding.HasField("forced"):
            assert finished.sequences[0].text == OUTPUT


def test_readers_of_the_record_get_marks(run: Run) -> None:
    assert run.watched
    leaks = [str(it) for it in run.watched if find_parts(it.SerializeToString())]
    assert not leaks, "\n".join(leaks)
    with grpc.insecure_channel(run.server.target) as channel:
        traces, stub = TraceServiceStub(channel), GenerationServiceStub(channel)
        listed = traces.ListGenerations(trace_pb2.ListGenerationsRequest(page_size=100))
        assert find_parts(listed.SerializeToString()) == []
        assert {dict(it.labels)["customer"] for it in listed.generations} == {"[customer]"}
        assert "Who is [mail]?" in {it.prompt_preview for it in listed.generations}
        for generation_id, events in zip(run.ids, run.streams, strict=True):
            got = traces.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=generation_id))
            told = [got.SerializeToString()]
            for prompt in (True, False):
                request = trace_pb2.ListStepsRequest(generation_id=generation_id, prompt=prompt)
                told.append(traces.ListSteps(request).SerializeToString())
            told += [
                response.SerializeToString()
                for response in stub.ResumeGeneration(
                    g.ResumeGenerationRequest(generation_id=generation_id)
                )
            ]
            assert find_parts(b"".join(told)) == []
            assert got.summary.num_generated_tokens == events[-1].finished.num_generated_tokens


def test_steps_outside_of_what_was_redacted_are_whole(run: Run) -> None:
    live = {(s.sequence_index, s.index): s for e in run.streams[0] for s in e.steps.steps}
    with grpc.insecure_channel(run.server.target) as channel:
        request = trace_pb2.ListStepsRequest(generation_id=run.ids[0])
        steps = TraceServiceStub(channel).ListSteps(request).steps
    assert "".join(step.text for step in steps) == MARKED
    assert {it.kind for step in steps for it in step.redactions} == {
        "mail",
        "card",
        "key",
        "customer",
    }
    num_whole = 0
    for step in steps:
        before = live[step.sequence_index, step.index]
        if step.redactions:
            assert not step.HasField("token_id")
            assert not step.HasField("logprob")
            assert not step.HasField("candidates")
            assert step.timing == before.timing
        else:
            num_whole += 1
            before.text_begin_byte, before.text_end_byte = step.text_begin_byte, step.text_end_byte
            before.text = step.text
            assert step == before
    assert num_whole > 4


def test_command_and_page_show_marks(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    show = ["generations", "show", run.ids[0], "--target", run.server.target]
    for more in ([], ["--steps"], ["--json", "--steps"], ["--html", str(page)]):
        assert client_main([*show, *more]) == 0
        told = capsys.readouterr().out
        assert find_parts(told.encode()) == []
    assert find_parts(page.read_bytes()) == []
    assert b"[mail]" in page.read_bytes()


def test_refused_call_is_on_record_with_marks(run: Run) -> None:
    twice = f'{{"{MAIL}": 1, "{MAIL}": 2}}'
    with grpc.insecure_channel(run.server.target) as channel:
        request = g.GenerateRequest(
            chat=g.ChatInput(
                messages=[g.ChatMessage(role="user", content="x")], template_arguments_json=twice
            )
        )
        with pytest.raises(grpc.RpcError, match="zelda"):
            list(GenerationServiceStub(channel).Generate(request))


def test_same_request_joins_its_generation(run: Run) -> None:
    request = make_requests()[0]
    request.generation_id = run.ids[0]
    with grpc.insecure_channel(run.server.target) as channel:
        stub = GenerationServiceStub(channel)
        events = generate(stub, request)
        assert events[0].started.generation_id == run.ids[0]
        request.prompt = "another"
        with pytest.raises(grpc.RpcError, match="ALREADY_EXISTS"):
            generate(stub, request)


def test_openais_api_records_marks(run: Run) -> None:
    # The newline ends the address: a first token of letters would belong to it, and be marked.
    prompt = f"Of {MAIL}\n"
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0}
    request = urllib.request.Request(
        f"{run.server.http_url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        generation_id = answer.headers["whence-generation-id"]
        text = json.loads(answer.read())["choices"][0]["text"]
    with Client(run.server.target) as client:
        got = client.generations.get(generation_id)
    assert got.started.prompt == "Of [mail]\n"
    assert got.finished.sequences[0].text == text


def test_generations_of_other_processes_are_redacted(
    run: Run, tiny_model: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whence_hooks.transformers import record_generate

    directory = tiny_model("gpt2")
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(f"Who is {MAIL}?", return_tensors="pt")
    with record_generate(model, tokenizer, run.server.target, labels={"hook": MAIL}) as recording:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert recording.flush(60)
    with Client(run.server.target) as client:
        (summary,) = client.generations.list(labels={"hook": "[mail]"})
        got = client.generations.get(summary.generation_id)
    assert got.started.prompt == "Who is [mail]?"
    assert not got.started.prompt_token_ids
    assert find_parts(got.SerializeToString()) == []


def test_nothing_is_on_disk_on_spans_or_in_the_log(run: Run) -> None:
    """The last test of the file: it ends the server."""
    while_running = read_folder(run.directory)
    assert run.server.terminate() == 0
    at_rest = read_folder(run.directory)
    for content in (while_running, at_rest):
        assert [path.name for path, raw in content.items() if find_parts(raw)] == []
    database = at_rest[run.directory / "journal.db"]
    assert b"[customer]" in database, "there was something to look through"
    exported = [it.SerializeToString() for it in (*run.collected.traces, *run.collected.logs)]
    assert b"[mail]" in b"".join(exported)
    assert find_parts(b"".join(exported)) == []
    assert find_parts("".join(run.server.log).encode()) == []
    assert main(["verify", "--data-dir", str(run.directory)]) == 0
