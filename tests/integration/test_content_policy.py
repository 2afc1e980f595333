"""Content policies of a real server: no byte of content is stored, exported or shown to others."""

import json
import sqlite3
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from folders import read_folder
from google.protobuf.message import Message
from otlp_collector import Collected, collecting
from server_process import ServerProcess

from whence import Client
from whence.v1 import generation_pb2 as g
from whence.v1 import trace_pb2
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.trace_pb2_grpc import TraceServiceStub
from whence_server.cli import main

PROMPT, SYSTEM, OUTPUT, TOOL = "zanzibar quokka", "kookaburra", "wombat numbat", "platypus"
STOP, BANNED, ARGUMENT = "echidna", "bandicoot", "cassowary"
TEXTS = (PROMPT, SYSTEM, OUTPUT, TOOL, STOP, BANNED, ARGUMENT)
WORDS = [word.encode() for text in TEXTS for word in text.split()]
KEPT_IDS, SECRET_IDS = range(200, 230), range(300, 330)
LABEL = "label-of-the-caller"
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
TOKENS, NONE = g.CONTENT_POLICY_TOKENS, g.CONTENT_POLICY_NONE
POLICIES = {g.CONTENT_POLICY_UNSPECIFIED: TOKENS, TOKENS: TOKENS, NONE: NONE}
"""Policy that holds on a server with `--journal-content tokens`, by the request's."""


def make_requests(policy: int) -> list[g.GenerateRequest]:
    """Return requests with content in every place that a request has for it."""
    forced = g.Decoding(forced=g.Forced(text=OUTPUT))
    chat = g.ChatInput(
        messages=[
            g.ChatMessage(role="system", content=SYSTEM),
            g.ChatMessage(role="assistant", content=TOOL, reasoning_content=ARGUMENT),
            g.ChatMessage(role="user", content_parts=[g.ContentPart(text=PROMPT)]),
        ],
        template_arguments_json=json.dumps({"bird": ARGUMENT}),
    )
    constrained = g.Decoding(
        sample=g.Sample(seed=7),
        constraint=g.Constraint(regex=f"({OUTPUT})"),
        stop=[STOP],
        bad_words=[BANNED],
        max_new_tokens=40,
    )
    search = g.Decoding(beam_search=g.BeamSearch(num_beams=2), max_new_tokens=4)
    schema = json.dumps({"type": "object", "properties": {TOOL: {"const": OUTPUT}}})
    by_schema = g.Decoding(
        greedy=g.Greedy(), constraint=g.Constraint(json_schema=schema), max_new_tokens=60
    )
    made = [
        g.GenerateRequest(prompt=PROMPT, decoding=forced),
        g.GenerateRequest(chat=chat, decoding=forced),
        g.GenerateRequest(prompt=PROMPT, decoding=constrained),
        g.GenerateRequest(prompt=PROMPT, decoding=by_schema),
        g.GenerateRequest(prompt=PROMPT, decoding=search),
    ]
    for request in made:
        request.generation_id = str(uuid.uuid4())
        request.trace.content = policy
        request.trace.prompt = True
        request.trace.num_candidates = 4
        request.trace.logprob_token_ids.append(5)
        request.labels["team"] = LABEL
    return made


class Stream(NamedTuple):
    """Events of one generation's own stream."""

    started: g.GenerationStarted
    events: list[g.GenerationEvent]

    @property
    def finished(self) -> g.GenerationFinished:
        return self.events[-1].finished

    def list_choices(self) -> list[tuple[str, bytes]]:
        """Return everything of the events but what differs from run to run."""
        found: list[tuple[str, bytes]] = []
        for event in self.events:
            kind = event.WhichOneof("event")
            assert kind is not None
            inner: Message = getattr(event, kind)
            if isinstance(inner, g.StepBatch):
                for step in inner.steps:
                    step.ClearField("timing")
                    found.append((kind, step.SerializeToString(deterministic=True)))
            elif isinstance(inner, g.GenerationFinished):
                found += [(kind, it.SerializeToString()) for it in inner.sequences]
            elif isinstance(inner, g.BeamRound):
                inner.ClearField("timing")
                found.append((kind, inner.SerializeToString()))
        return found


def generate(stub: GenerationServiceStub, request: g.GenerateRequest) -> Stream:
    events = [it.event for it in stub.Generate(request) if not it.event.HasField("progress")]
    return Stream(events[0].started, events)


class Run(NamedTuple):
    """Everything that a server took, gave and left."""

    streams: dict[int, list[Stream]]
    """Own streams of the requests of each policy."""
    watched: bytes
    collected: Collected
    directory: Path
    server: ServerProcess


@pytest.fixture(scope="module")
def run(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A server that keeps tokens, after requests of all policies; spans may carry content."""
    directory = tmp_path_factory.mktemp("policy")
    flags = ["--journal-content", "tokens", "--model-name", "tiny", "--log-level", "debug"]
    flags += ["--http-listen", "127.0.0.1:0", "--step-span-names", "token", "--token-arrays", "64"]
    flags += ["--step-form", "both", "--progress-interval", "0.2"]
    with collecting() as (collected, endpoint):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, CAPTURE: "SPAN_AND_EVENT"}
        with (
            ServerProcess(tiny_model("gpt2"), directory, *flags, environment=environment) as server,
            grpc.insecure_channel(server.target) as channel,
        ):
            watch = TraceServiceStub(channel).WatchGenerations(trace_pb2.WatchGenerationsRequest())
            watched: list[bytes] = []
            ends = 3 * len(make_requests(0))

            def keep_watch() -> None:
                num_finished = 0
                for response in watch:
                    watched.append(response.SerializeToString())
                    num_finished += response.event.HasField("finished")
                    if num_finished == ends:
                        return

            # The watch begins with the next event: its first position tells that it listens.
            assert not next(watch).HasField("event")
            watching = threading.Thread(target=keep_watch)
            watching.start()
            stub = GenerationServiceStub(channel)
            streams = {
                policy: [generate(stub, request) for request in make_requests(policy)]
                for policy in POLICIES
            }
            watching.join(60)
            assert not watching.is_alive()
            yield Run(streams, b"".join(watched), collected, directory, server)


def list_ids(run: Run) -> Iterator[tuple[int, str]]:
    for policy, streams in run.streams.items():
        for stream in streams:
            yield POLICIES[policy], stream.started.generation_id


def find_words(content: bytes) -> list[bytes]:
    return [word for word in WORDS if word in content]


def test_the_callers_streams_are_those_of_a_server_that_keeps_all(
    run: Run, server: ServerProcess
) -> None:
    with grpc.insecure_channel(server.target) as channel:
        stub = GenerationServiceStub(channel)
        expected = [generate(stub, request) for request in make_requests(0)]
    outputs = [stream.finished.sequences[0].text for stream in expected]
    assert outputs[:3] == [OUTPUT] * 3
    for policy, streams in run.streams.items():
        for stream, whole in zip(streams, expected, strict=True):
            assert stream.started.content == POLICIES[policy]
            assert stream.started.prompt == whole.started.prompt != ""
            assert stream.started.prompt_token_ids == whole.started.prompt_token_ids
            assert stream.started.chat == whole.started.chat
            assert stream.list_choices() == whole.list_choices()
    assert {it.started.content for it in expected} == {g.CONTENT_POLICY_FULL}


def test_readers_of_the_record_get_what_the_policy_keeps(run: Run) -> None:
    assert run.watched
    assert find_words(run.watched) == []
    with grpc.insecure_channel(run.server.target) as channel:
        traces, stub = TraceServiceStub(channel), GenerationServiceStub(channel)
        listed = traces.ListGenerations(trace_pb2.ListGenerationsRequest(page_size=100))
        assert find_words(listed.SerializeToString()) == []
        assert {dict(it.labels)["team"] for it in listed.generations} == {LABEL}
        for policy, generation_id in list_ids(run):
            got = traces.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=generation_id))
            assert got.started.content == policy
            assert got.started.num_prompt_tokens == got.summary.num_prompt_tokens > 0
            assert bool(got.started.prompt_token_ids) is (policy == TOKENS)
            assert bool(got.finished.sequences[0].token_ids) is (policy == TOKENS)
            told = [got.SerializeToString()]
            for prompt in (True, False):
                request = trace_pb2.ListStepsRequest(generation_id=generation_id, prompt=prompt)
                steps = traces.ListSteps(request)
                assert steps.steps
                assert {it.HasField("token_id") for it in steps.steps} == {policy == TOKENS}
                told.append(steps.SerializeToString())
            for response in stub.ResumeGeneration(
                g.ResumeGenerationRequest(generation_id=generation_id)
            ):
                assert response.content == policy
                told.append(response.SerializeToString())
            assert find_words(b"".join(told)) == []


def test_a_stream_goes_on_whole_for_its_caller(run: Run) -> None:
    with grpc.insecure_channel(run.server.target) as channel:
        stub = GenerationServiceStub(channel)
        own = generate(stub, make_requests(NONE)[2])
        request = g.ResumeGenerationRequest(
            generation_id=own.started.generation_id, after_offset=own.events[0].last_offset
        )
        resumed = list(stub.ResumeGeneration(request))
    assert {it.content for it in resumed} == {g.CONTENT_POLICY_UNSPECIFIED}
    again = Stream(own.started, [it.event for it in resumed])
    assert again.finished == own.finished
    assert again.list_choices() == own.list_choices()
    assert again.finished.sequences[0].text == OUTPUT


def test_the_command_shows_what_is_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from whence.cli.main import main as client_main

    for policy, words in ((TOKENS, "no text (tokens)"), (NONE, "no token ids (none)")):
        generation_id = run.streams[policy][2].started.generation_id
        show = ["generations", "show", generation_id, "--target", run.server.target]
        assert client_main([*show, "--steps"]) == 0
        told = capsys.readouterr().out
        assert words in told
        assert client_main([*show, "--json", "--steps"]) == 0
        as_json = capsys.readouterr().out
        assert json.loads(as_json.splitlines()[0])["started"]["content"].endswith(
            {TOKENS: "TOKENS", NONE: "NONE"}[policy]
        )
        assert find_words((told + as_json).encode()) == []


def test_more_than_the_server_keeps_is_refused(run: Run) -> None:
    with Client(run.server.target) as client, pytest.raises(Exception, match="journal-content"):
        client.generate(PROMPT, content="full", max_new_tokens=2).result()


def post(run: Run, body: dict[str, Any]) -> tuple[str, bytes]:
    request = urllib.request.Request(
        f"{run.server.http_url}/v1/completions",
        json.dumps({"model": "tiny", "max_tokens": 5, "prompt": PROMPT, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return answer.headers["whence-generation-id"], answer.read()


@pytest.mark.parametrize("stream", [False, True])
def test_openais_api_answers_whole_and_lowers_the_policy(run: Run, stream: bool) -> None:
    _, expected = post(run, {"seed": 7})
    generation_id, answer = post(run, {"seed": 7, "whence": {"content": "none"}, "stream": stream})
    if stream:
        parts = [json.loads(it[6:]) for it in answer.splitlines() if it.startswith(b"data: {")]
        text = "".join(it["choices"][0]["text"] for it in parts if it["choices"])
    else:
        text = json.loads(answer)["choices"][0]["text"]
    assert text == json.loads(expected)["choices"][0]["text"] != ""
    with Client(run.server.target) as client:
        got = client.generations.get(generation_id)
    assert got.started.content == NONE
    assert (got.finished.sequences[0].text, got.summary.text_preview) == ("", "")
    assert find_words(got.SerializeToString()) == []
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(run, {"whence": {"content": "full"}})
    assert caught.value.code == 400
    assert b"journal-content" in caught.value.read()


def test_generations_of_other_processes_obey_too(run: Run, tiny_model: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whence_hooks.transformers import record_generate

    directory = tiny_model("gpt2")
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    for content, policy in ((None, TOKENS), ("none", NONE)):
        labels = {"hook": str(content)}
        with record_generate(
            model, tokenizer, run.server.target, labels=labels, content=content
        ) as recording:
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
            assert recording.flush(60)
        with Client(run.server.target) as client:
            (summary,) = client.generations.list(labels=labels)
            got = client.generations.get(summary.generation_id)
            assert got.started.content == policy
            assert got.started.num_prompt_tokens == inputs["input_ids"].shape[1]
            assert bool(got.started.prompt_token_ids) is (policy == TOKENS)
            assert find_words(got.SerializeToString()) == []


def pack(token_ids: range) -> bytes:
    """Return ids as every message has them."""
    return g.TokenInput(token_ids=token_ids).SerializeToString()[2:]


def test_nothing_is_on_disk_on_spans_or_in_the_log(run: Run) -> None:
    """The last test of the file: it ends the server."""
    with Client(run.server.target) as client:
        for ids, content in ((KEPT_IDS, "tokens"), (SECRET_IDS, "none")):
            text = client.generate(ids, content=content, forced=ids).result()
            assert text.sequences[0].token_ids == tuple(ids)
    while_running = read_folder(run.directory)
    assert run.server.terminate() == 0
    at_rest = read_folder(run.directory)
    for content in (while_running, at_rest):
        assert [path.name for path, raw in content.items() if find_words(raw)] == []
    stored = b"".join(at_rest.values())
    assert LABEL.encode() in stored, "there was something to look through"
    with sqlite3.connect(f"file:{run.directory / 'journal.db'}?mode=ro", uri=True) as database:
        ((num_entries,),) = database.execute("SELECT count(*) FROM entries")
    assert num_entries > 100

    exported = [it.SerializeToString() for it in (*run.collected.traces, *run.collected.logs)]
    assert run.collected.spans
    assert run.collected.records
    assert find_words(b"".join(exported)) == []
    assert find_words("".join(run.server.log).encode()) == []

    assert not [it.name for it in run.collected.spans if find_words(it.name.encode())]
    assert pack(KEPT_IDS) in stored
    assert pack(SECRET_IDS) not in stored
    assert main(["verify", "--data-dir", str(run.directory)]) == 0
