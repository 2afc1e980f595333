"""RecordService over a socket: messages sent again, wrong messages, and who they harm."""

import asyncio
import hashlib
import json
import queue
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from record_server import RecordServer
from transformers import AutoTokenizer

from whence import Client
from whence.v1 import generation_pb2, record_pb2, step_pb2
from whence.v1.record_pb2_grpc import RecordServiceStub
from whence_server.access.gate import Gate
from whence_server.access.token_file import TokenFile
from whence_server.generation.recording import recorders

VOCABULARY = 416


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[..., Path]) -> bytes:
    loaded = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    text: str = loaded.backend_tokenizer.to_str()
    return text.encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordServer]:
    with RecordServer(tmp_path_factory.mktemp("record")) as running:
        yield running


class RawRecorder:
    """A recorder whose messages a test writes by hand."""

    def __init__(
        self, server: RecordServer, recorder_id: str = "", first_number: int = 1, token: str = ""
    ) -> None:
        self.recorder_id = recorder_id or str(uuid.uuid4())
        self._requests: queue.Queue[record_pb2.RecordGenerationsRequest | None] = queue.Queue()
        self._channel = grpc.insecure_channel(server.target)
        self.call = RecordServiceStub(self._channel).RecordGenerations(
            iter(self._requests.get, None),
            timeout=60,
            metadata=(("authorization", f"Bearer {token}"),) if token else (),
        )
        hello = record_pb2.RecorderHello(
            recorder_id=self.recorder_id, library="test/1", first_number=first_number
        )
        self.send(hello=hello)
        self.recorded_number = next(self.call).recorded_number
        self.refused: dict[int, generation_pb2.Failure] = {}

    def send(self, number: int = 0, **content: Any) -> None:
        self._requests.put(record_pb2.RecordGenerationsRequest(number=number, **content))

    def introduce(self, tokenizer: bytes, number: int = 1) -> None:
        sha256 = hashlib.sha256(tokenizer).hexdigest()
        self.send(
            model=record_pb2.RecordedModel(
                model_number=number,
                name="recorded",
                architecture="GPT2LMHeadModel",
                vocabulary_size=VOCABULARY,
                tokenizer_sha256=sha256,
                tokenizer_bytes=len(tokenizer),
            )
        )
        answer = next(self.call)
        if answer.wanted_tokenizer == sha256:
            half = len(tokenizer) // 2
            for part in (tokenizer[:half], tokenizer[half:]):
                self.send(tokenizer=record_pb2.TokenizerPart(sha256=sha256, content=part))
            answer = next(self.call)
        assert list(answer.ready_model_numbers) == [number]

    def wait_for(self, number: int) -> None:
        while self.recorded_number < number:
            answer = next(self.call)
            self.recorded_number = answer.recorded_number
            self.refused.update({r.batch_number: r.failure for r in answer.refused})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.put(None)
        self._channel.close()


def make_begun(batch_number: int, generation_id: str, **changes: Any) -> record_pb2.BatchBegun:
    begun = record_pb2.BatchBegun(
        batch_number=batch_number,
        model_number=1,
        decoding=generation_pb2.Decoding(
            greedy=generation_pb2.Greedy(), max_new_tokens=9, num_return_sequences=1
        ),
        trace=generation_pb2.TraceOptions(
            detail=generation_pb2.TRACE_DETAIL_DECISIONS, num_candidates=1
        ),
        prompts=[record_pb2.BatchPrompt(generation_id=generation_id, token_ids=[5, 6])],
    )
    begun.start_time.GetCurrentTime()
    if "start_time" in changes:
        begun.ClearField("start_time")
    begun.MergeFrom(record_pb2.BatchBegun(**changes))
    return begun


def make_step(batch_number: int, index: int, **changes: Any) -> record_pb2.BatchStep:
    values: dict[str, Any] = {
        "rows": [0],
        "token_ids": [10 + index],
        "finish_reasons": [generation_pb2.FINISH_REASON_UNSPECIFIED],
        "timing": step_pb2.StepTiming(elapsed_ns=1000 * (index + 1), batch_size=1),
        "logprobs": [-1.0],
        "candidate_ids": [3],
        "candidate_logprobs": [-0.5],
        "candidate_sampling_logprobs": [-0.5],
    }
    return record_pb2.BatchStep(batch_number=batch_number, index=index, **values | changes)


def make_ended(batch_number: int) -> record_pb2.BatchEnded:
    return record_pb2.BatchEnded(
        batch_number=batch_number,
        elapsed_ns=5000,
        finish_reason=generation_pb2.FINISH_REASON_CANCELLED,
    )


def read(server: RecordServer, generation_id: str) -> generation_pb2.GenerationFinished:
    with Client(server.target) as client:
        return client.generations.get(generation_id).finished


def test_messages_sent_again_after_a_reconnect_are_recorded_once(
    server: RecordServer, tokenizer: bytes
) -> None:
    generation_id = str(uuid.uuid4())
    messages: list[dict[str, Any]] = [
        {"begun": make_begun(1, generation_id)},
        {"step": make_step(1, 0)},
        {"step": make_step(1, 1)},
        {"ended": make_ended(1)},
    ]
    with RawRecorder(server) as first:
        first.introduce(tokenizer)
        for number, message in enumerate(messages[:2], 1):
            first.send(number, **message)
        first.wait_for(2)
    with RawRecorder(server, first.recorder_id) as second:
        assert second.recorded_number == 2
        # The recorder had not read the answer.
        for number, message in enumerate(messages, 1):
            second.send(number, **message)
        second.wait_for(4)
        assert second.refused == {}
    finished = read(server, generation_id)
    assert list(finished.sequences[0].token_ids) == [10, 11]
    assert finished.finish_reason == generation_pb2.FINISH_REASON_CANCELLED


WRONG_STEPS = {
    "id beyond the vocabulary": {"token_ids": [VOCABULARY]},
    "no id": {"token_ids": []},
    "two ids for one row": {"token_ids": [1, 2]},
    "row beyond the batch": {"rows": [1]},
    "rows twice": {"rows": [0, 0]},
    "missing step": {"index": 3},
    "candidate beyond the vocabulary": {"candidate_ids": [VOCABULARY]},
    "too many candidates": {"candidate_logprobs": [-1.0, -2.0]},
    "unknown reason": {"finish_reasons": [generation_pb2.FINISH_REASON_FAILED]},
    "time before the start": {"timing": step_pb2.StepTiming(elapsed_ns=-1)},
    "effect of no processor": {"num_kept": [3]},
}


@pytest.mark.parametrize("changes", WRONG_STEPS.values(), ids=WRONG_STEPS)
def test_wrong_step_ends_its_own_batch_alone(
    server: RecordServer, tokenizer: bytes, changes: dict[str, Any]
) -> None:
    wrong, right = str(uuid.uuid4()), str(uuid.uuid4())
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, wrong))
        recorder.send(2, begun=make_begun(2, right))
        recorder.send(3, step=make_step(1, 0))
        step = make_step(1, 1)
        for name, value in changes.items():
            step.ClearField(name)
            step.MergeFrom(record_pb2.BatchStep(**{name: value}))
        recorder.send(4, step=step)
        recorder.send(5, step=make_step(1, 2))
        recorder.send(6, step=make_step(2, 0))
        recorder.send(7, ended=make_ended(2))
        recorder.wait_for(7)
        assert recorder.refused[1].reason == "RECORD_INVALID"
    failed = read(server, wrong)
    assert failed.finish_reason == generation_pb2.FINISH_REASON_FAILED
    assert failed.failure.reason == "RECORD_INVALID"
    assert list(failed.sequences[0].token_ids) == [10]
    assert list(read(server, right).sequences[0].token_ids) == [10]


WRONG_STARTS = {
    "id that is no UUID": {"prompts": [record_pb2.BatchPrompt(generation_id="x", token_ids=[1])]},
    "empty prompt": {"prompts": [record_pb2.BatchPrompt(generation_id=str(uuid.uuid4()))]},
    "prompt beyond the vocabulary": {
        "prompts": [record_pb2.BatchPrompt(generation_id=str(uuid.uuid4()), token_ids=[VOCABULARY])]
    },
    "unknown model": {"model_number": 7},
    "forced": {"decoding": generation_pb2.Decoding(forced=generation_pb2.Forced(text="x"))},
    "too many labels": {"labels": {str(i): "" for i in range(33)}},
    "long name of a processor": {"processor_names": ["x" * 1000]},
    "start beyond 64 bits of nanoseconds": {"start_time": Timestamp(seconds=253402300799)},
    "start that is no time": {"start_time": Timestamp(seconds=2**62)},
    "start in 200 years": {"start_time": Timestamp(seconds=8_000_000_000)},
    "no start": {"start_time": Timestamp()},
    "start before 1970": {"start_time": Timestamp(seconds=-1)},
    "too many rows": {"decoding": generation_pb2.Decoding(num_return_sequences=5000)},
}


@pytest.mark.parametrize("changes", WRONG_STARTS.values(), ids=WRONG_STARTS)
def test_wrong_start_is_refused_and_the_stream_goes_on(
    server: RecordServer, tokenizer: bytes, changes: dict[str, Any]
) -> None:
    right = str(uuid.uuid4())
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, str(uuid.uuid4()), **changes))
        recorder.send(2, step=make_step(1, 0))
        recorder.send(3, begun=make_begun(2, right))
        recorder.send(4, ended=make_ended(2))
        recorder.wait_for(4)
        assert set(recorder.refused) == {1}
    assert read(server, right).HasField("end_time")


def test_id_that_is_on_record_is_refused(server: RecordServer, tokenizer: bytes) -> None:
    generation_id = str(uuid.uuid4())
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, generation_id))
        recorder.send(2, begun=make_begun(2, generation_id))
        recorder.send(3, ended=make_ended(1))
        recorder.wait_for(3)
        assert recorder.refused[2].reason == "GENERATION_EXISTS"
    assert read(server, generation_id).finish_reason == generation_pb2.FINISH_REASON_CANCELLED


def test_model_that_changes_again_and_again_is_recorded_on(
    server: RecordServer, tokenizer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "MAX_MODELS", 2)
    first, last = str(uuid.uuid4()), str(uuid.uuid4())
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, first))
        recorder.wait_for(1)
        for number in (2, 3, 4):
            recorder.introduce(tokenizer, number)
        recorder.send(2, begun=make_begun(2, last, model_number=4))
        recorder.send(3, step=make_step(1, 0))
        recorder.send(4, ended=make_ended(1))
        recorder.send(5, ended=make_ended(2))
        recorder.wait_for(5)
        assert recorder.refused == {}
    assert read(server, first).num_generated_tokens == 1


def prompts_of(*generation_ids: str) -> dict[str, Any]:
    return {
        "prompts": [
            record_pb2.BatchPrompt(generation_id=generation_id, token_ids=[5, 6])
            for generation_id in generation_ids
        ]
    }


def test_id_of_a_generation_that_is_not_on_record_is_refused(
    server: RecordServer, tokenizer: bytes
) -> None:
    generation_id = str(uuid.uuid4())
    server.taken = {generation_id}
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, generation_id))
        recorder.wait_for(1)
        assert recorder.refused[1].reason == "GENERATION_EXISTS"


def test_two_recorders_that_begin_one_id_at_a_time_do_not_disturb_each_other(
    server: RecordServer, tokenizer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, first, last = (str(uuid.uuid4()) for _ in range(3))
    waiting, go_on = asyncio.Event(), asyncio.Event()
    look_up = server.journal.look_up

    async def look_up_late(generation_id: str) -> Any:
        found = await look_up(generation_id)
        if generation_id == shared and not waiting.is_set():
            waiting.set()
            await go_on.wait()
        return found

    monkeypatch.setattr(server.journal, "look_up", look_up_late)
    with RawRecorder(server) as one, RawRecorder(server) as other:
        for recorder in (one, other):
            recorder.introduce(tokenizer)
        one.send(1, begun=make_begun(1, shared))
        server.run(asyncio.wait_for(waiting.wait(), 30))
        other.send(1, begun=make_begun(1, first, **prompts_of(shared)))
        other.send(2, begun=make_begun(2, last))
        other.wait_for(2)
        server.run(set_event(go_on))
        one.wait_for(1)
        assert not one.refused
        assert {number: it.reason for number, it in other.refused.items()} == {
            1: "GENERATION_EXISTS"
        }
        assert server.run(server.journal.look_up(first)) is None, "the batch is refused whole"
        assert server.run(server.journal.look_up(last)) is not None, "the stream goes on"


async def set_event(event: asyncio.Event) -> None:
    event.set()


def test_id_that_is_taken_while_a_batch_begins_leaves_none_of_it_running(
    server: RecordServer, tokenizer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, taken, later = (str(uuid.uuid4()) for _ in range(3))
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, taken))
        recorder.wait_for(1)

        async def look_up(_: str) -> None:
            return None

        with monkeypatch.context() as patch:
            patch.setattr(server.journal, "look_up", look_up)
            recorder.send(2, begun=make_begun(2, first, **prompts_of(taken)))
            recorder.send(3, begun=make_begun(3, later))
            recorder.wait_for(3)
        assert recorder.refused[2].reason == "GENERATION_EXISTS"
        assert set(recorder.refused) == {2}
    failed = read(server, first)
    assert failed.finish_reason == generation_pb2.FINISH_REASON_FAILED
    assert failed.failure.reason == "GENERATION_EXISTS"


def test_recorder_that_does_not_come_back_has_its_batch_interrupted(
    server: RecordServer, tokenizer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whence_server.generation.recording import recorders

    monkeypatch.setattr(recorders, "GRACE_S", 0.05)
    generation_id = str(uuid.uuid4())
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(1, begun=make_begun(1, generation_id))
        recorder.send(2, step=make_step(1, 0))
        recorder.wait_for(2)

    async def follow() -> None:
        async for _ in server.journal.follow(generation_id):
            pass

    server.run(follow())
    finished = read(server, generation_id)
    assert finished.finish_reason == generation_pb2.FINISH_REASON_INTERRUPTED
    assert list(finished.sequences[0].token_ids) == [10]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"hello": record_pb2.RecorderHello(recorder_id="x", library="t")}, "hello.recorder_id"),
        ({"hello": record_pb2.RecorderHello(recorder_id=str(uuid.uuid4()))}, "hello.library"),
        ({"ended": make_ended(1), "number": 1}, "request"),
    ],
)
def test_call_without_a_proper_hello_is_invalid(
    server: RecordServer, request_: dict[str, Any], named: str
) -> None:
    with grpc.insecure_channel(server.target) as channel:
        message = record_pb2.RecordGenerationsRequest(**request_)
        call = RecordServiceStub(channel).RecordGenerations(iter([message]), timeout=60)
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named in str(error.value.details())


def test_number_that_leaves_a_gap_ends_the_call(server: RecordServer, tokenizer: bytes) -> None:
    with RawRecorder(server) as recorder:
        recorder.introduce(tokenizer)
        recorder.send(2, begun=make_begun(1, str(uuid.uuid4())))
        with pytest.raises(grpc.RpcError) as error:
            recorder.wait_for(2)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "number: must be 1, not 2" in str(error.value.details())


def test_tokenizer_with_other_bytes_is_invalid(server: RecordServer) -> None:
    with RawRecorder(server) as recorder:
        model = record_pb2.RecordedModel(
            model_number=1,
            name="m",
            vocabulary_size=4,
            tokenizer_sha256="0" * 64,
            tokenizer_bytes=3,
        )
        recorder.send(model=model)
        assert next(recorder.call).wanted_tokenizer == "0" * 64
        recorder.send(tokenizer=record_pb2.TokenizerPart(sha256="0" * 64, content=b"abc"))
        with pytest.raises(grpc.RpcError) as error:
            next(recorder.call)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "another SHA-256" in str(error.value.details())


def test_recorders_and_limits_of_callers_are_kept_apart(tmp_path: Path, tokenizer: bytes) -> None:
    lines = [
        {"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "scopes": scopes}
        for name, scopes in (("alice", ["generate"]), ("bob", ["generate"]), ("eve", ["read"]))
    ]
    callers = tmp_path / "callers"
    callers.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    callers.chmod(0o600)
    gate = Gate(TokenFile(callers))
    first, second, third = (str(uuid.uuid4()) for _ in range(3))
    with RecordServer(tmp_path / "server", gate, max_generations=1) as server:
        with RawRecorder(server, token="alice") as alice:
            alice.introduce(tokenizer)
            alice.send(1, begun=make_begun(1, first))
            alice.send(2, begun=make_begun(2, second))
            alice.wait_for(2)
            assert alice.refused[2].reason == "CALLER_LIMIT"
            with RawRecorder(server, alice.recorder_id, token="bob") as bob:
                assert bob.recorded_number == 0, "another caller's recorder is another one"
                bob.introduce(tokenizer)
                bob.send(1, begun=make_begun(1, third))
                bob.wait_for(1)
                assert not bob.refused
            alice.send(3, step=make_step(1, 0))
            alice.wait_for(3)
        owners = {
            generation_id: server.run(server.journal.get(generation_id)).index.owner
            for generation_id in (first, third)
        }
        assert owners == {first: "alice", third: "bob"}
        for token, code in (
            ("eve", grpc.StatusCode.PERMISSION_DENIED),
            ("", grpc.StatusCode.UNAUTHENTICATED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                RawRecorder(server, token=token)
            assert caught.value.code() is code
