"""TrainingService on a real socket, by both kinds of client."""

import asyncio
import hashlib
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from lineage_records import GROUPS, START_NS, RecordBuilder, loaded_model, merkle_root, run_id
from rpc_errors import failure_of
from training_server import TrainingServer, training_server
from waiting import wait_until

from whence import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    verify_inclusion,
)
from whence.v1 import training_pb2 as pb
from whence.v1.model_pb2 import FileDigest
from whence.v1.training_pb2_grpc import TrainingServiceStub
from whence_server.domain.errors import DocumentChangedError
from whence_server.lineage.documents import DocumentFile

TEXTS = [b"one", b"two two", b"three\xff", b"four\n", b"five"]


@pytest.fixture
def builder(tmp_path: Path) -> Any:
    with RecordBuilder(tmp_path / "runs" / "first") as made:
        made.documents(tmp_path / "corpus.txt", TEXTS)
        made.examples([[(0, 0, 3), (1, 0, 2), (0, 1, 2)], [(1, 2, 7)]])
        made.attempt().steps(range(1, 8)).evaluation(5).checkpoint(5)
        yield made


@pytest.fixture
async def server(builder: RecordBuilder, tmp_path: Path) -> AsyncIterator[TrainingServer]:
    async with training_server(tmp_path / "runs") as started:
        yield started


@pytest.fixture
async def client(server: TrainingServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target) as opened:
        yield opened


async def test_runs_are_listed_newest_first_in_pages(
    client: AsyncClient, builder: RecordBuilder, tmp_path: Path
) -> None:
    for number in range(2, 7):
        with RecordBuilder(tmp_path / "runs" / f"r{number}", number):
            pass
    listed = [run async for run in client.training_runs.list(page_size=2)]
    assert [run.training_run_id for run in listed] == [run_id(n) for n in range(6, 0, -1)]
    first = listed[-1]
    assert first == pb.TrainingRunSummary(
        training_run_id=builder.id,
        name="run 1",
        state=pb.TRAINING_STATE_RUNNING,
        start_time=first.start_time,
        last_time=first.last_time,
        step=7,
        loss=4.0 / 7 + 1 / 64,
        num_planned_steps=40,
        num_tokens_seen=112,
        num_attempts=1,
        architecture="GPT2LMHeadModel",
        num_parameters=1_000,
        num_documents=5,
        num_examples=5,
        merkle_root=merkle_root([hashlib.sha256(text).digest() for text in TEXTS]).hex(),
        record_path=str(builder.path),
        num_entries=builder.position,
        head=builder.head,
    )
    assert first.start_time.ToNanoseconds() == START_NS + 10**9
    assert first.last_time.ToNanoseconds() == START_NS + 10**9 + 10**8 + 7_000_000
    assert not listed[0].HasField("loss")


async def test_a_run_is_returned_with_all_its_fields(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    run = await client.training_runs.get(builder.id)
    assert run.summary.training_run_id == run.started.training_run_id == builder.id
    assert [group.name for group in run.started.groups] == list(GROUPS)
    assert run.dataset.kind == "documents"
    assert [attempt.attempt for attempt in run.attempts] == [1]
    assert [(c.step, len(c.files), len(c.tensors)) for c in run.checkpoints] == [(5, 1, 0)]
    assert run.evaluations[0].metrics["eval_loss"] == 2.5
    builder.finish(7)
    assert (await client.training_runs.get(builder.id)).endings[0].step == 7


async def test_steps_are_listed_by_range_stride_and_page(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    builder.attempt(resumed_step=5).steps([6])

    async def listed(**options: Any) -> list[tuple[int, int]]:
        steps = client.training_runs.steps(builder.id, **options)
        return [(step.step, step.attempt) async for step in steps]

    counting = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2)]
    for page_size in (0, 1, 2, 5, 6, 7):
        assert await listed(page_size=page_size) == counting
        assert await listed(page_size=page_size, include_superseded=True, first_step=5) == [
            (5, 1), (6, 1), (6, 2), (7, 1),
        ]  # fmt: skip
        assert await listed(page_size=page_size, stride=2) == [(1, 1), (3, 1), (5, 1), (6, 2)]
    assert await listed(first_step=2, last_step=4) == counting[1:4]
    assert await listed(first_step=99) == []
    whole = [s async for s in client.training_runs.steps(builder.id, last_step=1)]
    assert whole[0].ranks[0].example_ids == [1, 4]
    bare = [
        s async for s in client.training_runs.steps(builder.id, last_step=1, omit_examples=True)
    ]
    assert (bare[0].ranks[0].num_micro_batches, list(bare[0].ranks[0].example_ids)) == (1, [])
    assert bare[0].update_norms == whole[0].update_norms


async def test_a_page_of_large_steps_fits_a_message(
    server: TrainingServer, builder: RecordBuilder
) -> None:
    many = [pb.RankExamples(example_ids=range(1 << 30, (1 << 30) + 100_000))]
    builder.steps(range(8, 18), ranks=many)
    # gRPC's own bound of 4 MiB a message.
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = TrainingServiceStub(channel)
        request = pb.ListTrainingStepsRequest(training_run_id=builder.id)
        pages = []
        while not pages or pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token if pages else ""
            pages.append(await stub.ListTrainingSteps(request))
    assert [step.step for page in pages for step in page.steps] == list(range(1, 18))
    assert len(pages) > 1


async def test_a_run_is_followed_while_another_process_trains(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    before = builder.position
    seen: list[pb.TrainingEvent] = []
    async with client.training_runs.watch(builder.id, after_position=0) as watching:
        async for response in watching:
            seen.extend(response.events)
            if len(seen) == before:
                await _in_another_process(builder)
    assert response.last_position == len(seen) == before + 4
    kinds = [event.WhichOneof("event") for event in seen]
    assert kinds[0] == "started"
    assert kinds[before:] == ["attempt_started", "step", "step", "attempt_finished"]
    assert seen[-1].attempt_finished.state == pb.TRAINING_STATE_COMPLETED


async def _in_another_process(builder: RecordBuilder) -> None:
    """Goes on with the record as a training that was resumed would."""
    builder.close()
    program = f"""
from pathlib import Path
from whence.v1 import training_pb2 as pb
from whence_server.lineage.writer import RecordWriter
writer = RecordWriter.resume(Path({str(builder.path)!r}))
writer.append(pb.TrainingEvent(attempt_started=pb.AttemptStarted(attempt=2, resumed_step=7)))
for step in (8, 9):
    writer.append(pb.TrainingEvent(step=pb.TrainingStep(step=step, attempt=2)))
writer.append(pb.TrainingEvent(attempt_finished=pb.AttemptFinished(
    attempt=2, step=9, state=pb.TRAINING_STATE_COMPLETED)))
writer.close()
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0


async def test_watch_from_now_on_skips_older_entries(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    watching = client.training_runs.watch(builder.id)
    coming = asyncio.ensure_future(anext(watching))
    # Whatever is recorded before the server has begun to watch counts as old: so go on recording.
    number = 8
    while not coming.done():
        builder.steps([number])
        number += 1
        await asyncio.wait({coming}, timeout=0.05)
    builder.finish(number)
    steps = [event.step.step for event in coming.result().events]
    assert steps[0] >= 8
    async for response in watching:
        steps += [e.step.step for e in response.events if e.HasField("step")]
    assert steps == list(range(steps[0], number))


async def test_a_watch_of_a_run_that_has_ended_ends(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    builder.finish(7, pb.TRAINING_STATE_FAILED)
    for after in (None, builder.position, builder.position - 1, 0):
        watching = client.training_runs.watch(builder.id, after_position=after)
        events = [event async for response in watching for event in response.events]
        assert len(events) == builder.position - (builder.position if after is None else after)


async def test_a_run_that_was_resumed_after_its_end_is_followed_on(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    builder.finish(7, pb.TRAINING_STATE_INTERRUPTED).attempt(resumed_step=7).steps([8])
    num_seen = 0
    async for response in client.training_runs.watch(builder.id, after_position=0):
        num_seen += len(response.events)
        if num_seen == builder.position and builder.attempt_number == 2:
            builder.finish(8)
            builder.attempt_number = 3
    assert num_seen == builder.position


async def test_a_watch_says_unavailable_when_the_server_closes(
    server: TrainingServer, builder: RecordBuilder
) -> None:
    async with AsyncClient(server.target, resume_timeout_s=0.0) as client:
        watching = client.training_runs.watch(builder.id, after_position=0)
        await anext(watching)
        server.closing.set()
        with pytest.raises(UnavailableError) as caught:
            await anext(watching)
        assert (caught.value.reason, caught.value.retry_delay_s) == ("DRAINING", 1.0)


async def test_a_quiet_watch_repeats_its_position(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path / "run") as builder:
        builder.attempt().steps(range(1, 4))
        async with (
            training_server(tmp_path, progress_interval_s=0.1) as server,
            grpc.aio.insecure_channel(server.target) as channel,
            AsyncClient(server.target) as client,
        ):
            request = pb.WatchTrainingRunRequest(training_run_id=builder.id, after_position=0)
            call = TrainingServiceStub(channel).WatchTrainingRun(request)
            first = await call.read()
            quiet = await call.read()
            assert first.events
            assert quiet == pb.WatchTrainingRunResponse(last_position=first.last_position)
            watching = client.training_runs.watch(builder.id, after_position=first.last_position)
            coming = asyncio.ensure_future(anext(watching))
            # The client has had two such messages by the time that another stream has.
            assert [await call.read() for _ in range(3)] == [quiet] * 3
            builder.steps(range(4, 5))
            (event,) = (await coming).events
            assert event.step.step == 4


async def test_a_watch_ends_where_its_record_is_gone(
    client: AsyncClient, builder: RecordBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    watching = client.training_runs.watch(builder.id, after_position=0)
    await anext(watching)
    builder.path.unlink()
    with pytest.raises(NotFoundError):
        await anext(watching)
    assert "the watch of a training run ends" in caplog.text


async def test_a_document_is_found_by_index_digest_and_example(
    client: AsyncClient, builder: RecordBuilder
) -> None:
    runs = client.training_runs
    for index, text in enumerate(TEXTS):
        found = await runs.document(builder.id, index=index)
        assert (found.index, found.text) == (index, text)
        same = await runs.document(builder.id, sha256=hashlib.sha256(text).hexdigest())
        assert same == found
    example = await runs.document(builder.id, example_id=0)
    assert (example.index, example.text) == (0, b"one")
    # Its piece of another document in between is not this one's.
    assert [(p.begin_byte, p.end_byte) for p in example.pieces] == [(0, 3), (1, 2)]
    assert [(p.document_index, p.begin_byte, p.end_byte) for p in example.example_pieces] == [
        (0, 0, 3),
        (1, 0, 2),
        (0, 1, 2),
    ]
    second = await runs.document(builder.id, example_id=1, omit_text=True)
    assert (second.index, second.text, second.document.sha256) == (
        1,
        b"",
        hashlib.sha256(b"two two").hexdigest(),
    )


async def test_changed_document_is_refused_and_its_location_is_still_returned(
    client: AsyncClient, builder: RecordBuilder, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"".join(TEXTS).replace(b"four", b"5our"))
    with pytest.raises(FailedPreconditionError) as caught:
        await client.training_runs.document(builder.id, index=3)
    assert caught.value.reason == "DOCUMENT_CHANGED"
    assert caught.value.metadata["source"] == str(tmp_path / "corpus.txt")
    assert (await client.training_runs.document(builder.id, index=3, omit_text=True)).index == 3
    assert (await client.training_runs.document(builder.id, index=4)).text == b"five"


@pytest.fixture
def large(tmp_path: Path) -> bytes:
    """A document that no message holds, beside small ones; it is document 1."""
    text = random.Random(5).randbytes((4 << 20) + 12_345)
    with RecordBuilder(tmp_path / "runs" / "large", 9) as made:
        made.documents(tmp_path / "large.bin", [b"small", text, b""])
        made.examples([[(1, 4_000_000, 4_000_500), (0, 0, 5)]])
    return text


async def test_a_document_of_any_size_is_read_by_clients_with_grpc_s_own_limits(
    server: TrainingServer, client: AsyncClient, large: bytes
) -> None:
    wanted = run_id(9)
    # The contract alone, on a channel that takes messages of 4 MiB.
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = TrainingServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetDocument(pb.GetDocumentRequest(training_run_id=wanted, index=1))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "read it with ReadDocument" in str(refused.value.details())
        request = pb.ReadDocumentRequest(training_run_id=wanted, example_id=0)
        responses = [response async for response in stub.ReadDocument(request)]
    assert responses[0].found.document.sha256 == hashlib.sha256(large).hexdigest()
    assert [p.begin_byte for p in responses[0].found.pieces] == [4_000_000]
    begin = 0
    for response in responses[1:]:
        assert response.begin_byte == begin
        begin += len(response.text)
    assert b"".join(response.text for response in responses) == large
    assert (await client.training_runs.document(wanted, example_id=0)).text == large
    for first, last in ((0, 1), (1 << 20, (1 << 20) + 1), (1_000_000, 3_500_000), (7, 0)):
        read = client.training_runs.read_document(wanted, index=1, begin_byte=first, end_byte=last)
        assert b"".join([piece async for piece in read]) == large[first : last or None]
    for index, first in ((2, 0), (1, len(large))):
        read = client.training_runs.read_document(wanted, index=index, begin_byte=first)
        assert [piece async for piece in read] == []
    with Client(server.target) as blocking:
        pieces = await asyncio.to_thread(
            lambda: list(blocking.training_runs.read_document(wanted, index=1))
        )
    assert b"".join(pieces) == large


@pytest.mark.usefixtures("large")
async def test_no_byte_of_a_changed_document_is_read(client: AsyncClient, tmp_path: Path) -> None:
    with (tmp_path / "large.bin").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"xyz")
    # Not even of its beginning, which is as it was.
    with pytest.raises(FailedPreconditionError, match="no longer has the text"):
        await anext(client.training_runs.read_document(run_id(9), index=1, end_byte=10))


def test_a_document_that_changes_while_it_is_read_is_refused_from_there_on(
    large: bytes, tmp_path: Path
) -> None:
    document = pb.TrainingDocument(
        source=str(tmp_path / "large.bin"),
        begin_byte=5,
        end_byte=5 + len(large),
        sha256=hashlib.sha256(large).hexdigest(),
    )
    with DocumentFile(document) as file:
        while file.digest_slices(1):
            pass
        slices = file.read_slices(100, len(large))
        assert next(slices) == large[100 : 1 << 20]
        with (tmp_path / "large.bin").open("r+b") as source:
            source.seek(3 << 20)
            source.write(b"xyz")
        assert next(slices) == large[1 << 20 : 2 << 20]
        with pytest.raises(DocumentChangedError, match="it changed while it was read"):
            next(slices)


async def test_run_with_many_checkpoints_is_returned_in_pages_below_the_message_limit(
    server: TrainingServer, client: AsyncClient, builder: RecordBuilder
) -> None:
    files = [FileDigest(path=f"shard-{n}", sha256="ab" * 32) for n in range(400)]
    for step in range(200):
        builder.checkpoint(step, f"checkpoint-{step}", files=files)
    builder.evaluation(7)
    run = await client.training_runs.get(builder.id)
    assert run.ByteSize() > 5 << 20
    assert [c.step for c in run.checkpoints] == [5, *range(200)]
    assert [len(c.files) for c in run.checkpoints[1:]] == [400] * 200
    assert (len(run.attempts), len(run.evaluations)) == (1, 2)
    assert run.started.name
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = TrainingServiceStub(channel)
        page = await stub.GetTrainingRun(pb.GetTrainingRunRequest(training_run_id=builder.id))
        assert page.next_page_token


@pytest.mark.parametrize("num_documents", [1, 2, 3, 7, 8, 33])
async def test_inclusion_is_proven(tmp_path: Path, num_documents: int) -> None:
    texts = [f"document {i}".encode() for i in range(num_documents)]
    with RecordBuilder(tmp_path / "r") as made:
        made.documents(tmp_path / "corpus.txt", texts)
        async with training_server(tmp_path) as server, AsyncClient(server.target) as client:
            root = merkle_root([hashlib.sha256(text).digest() for text in texts])
            for index, text in enumerate(texts):
                proof = await client.training_runs.inclusion_proof(made.id, index=index)
                assert proof.leaf_data == hashlib.sha256(text).digest()
                assert (proof.leaf_index, proof.tree_size) == (index, num_documents)
                assert proof.root == root
                assert verify_inclusion(proof)
                assert verify_inclusion(proof, root.hex())
                by_digest = await client.training_runs.inclusion_proof(
                    made.id, sha256=hashlib.sha256(text).hexdigest()
                )
                assert by_digest == proof


async def test_an_empty_id_is_the_run_that_made_the_served_model(
    server: TrainingServer, client: AsyncClient, builder: RecordBuilder, tmp_path: Path
) -> None:
    async with AsyncClient(server.target, connect_timeout_s=0) as hasty:
        with pytest.raises(UnavailableError) as loading:
            await hasty.training_runs.get()
    assert (loading.value.reason, loading.value.retry_delay_s) == ("MODEL_LOADING", 1.0)
    assert (await client.training_runs.get(builder.id)).summary.served_models == []
    await server.load(tmp_path)
    with pytest.raises(NotFoundError, match="no record of the training run of its model"):
        await client.training_runs.get()
    digest = server.serving.model.model_digest  # type: ignore[union-attr]
    builder.checkpoint(7, ".", model_digest=digest)
    await server.load(tmp_path)
    run = await client.training_runs.get()
    assert (run.summary.training_run_id, run.summary.served_models) == (builder.id, ["m"])
    assert [s.step async for s in client.training_runs.steps()] == list(range(1, 8))


async def test_calls_for_the_run_of_the_served_model_wait_while_it_loads(
    server: TrainingServer, builder: RecordBuilder, tmp_path: Path
) -> None:
    builder.checkpoint(7, ".", model_digest=loaded_model(tmp_path).model_digest)
    with Client(server.target, connect_timeout_s=60) as blocking:
        async with AsyncClient(server.target, connect_timeout_s=60) as client:
            runs, theirs = client.training_runs, blocking.training_runs
            asked = [
                asyncio.ensure_future(call)
                for call in (
                    runs.get(),
                    anext(runs.steps()),
                    runs.document(index=1),
                    anext(runs.read_document(index=1)),
                    runs.inclusion_proof(index=1),
                    asyncio.to_thread(theirs.get),
                    asyncio.to_thread(lambda: next(theirs.read_document(index=1))),
                )
            ]
            await wait_until(lambda: server.serving.num_refused >= len(asked))
            await server.load(tmp_path)
            run, step, document, text, proof, *blocked = await asyncio.gather(*asked)
    assert run.summary.training_run_id == builder.id
    assert step.step == 1
    assert document.text == text == TEXTS[1]
    assert proof.leaf_index == 1
    assert blocked == [run, text]


BAD: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("ListTrainingRuns", {"page_size": -1}, grpc.StatusCode.INVALID_ARGUMENT, "page_size"),
    ("ListTrainingRuns", {"page_token": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
    ("GetTrainingRun", {"training_run_id": "nobody"}, grpc.StatusCode.NOT_FOUND, ""),
    ("ListTrainingSteps", {"page_size": -1}, grpc.StatusCode.INVALID_ARGUMENT, "page_size"),
    (
        "ListTrainingSteps",
        {"page_token": "after:1"},
        grpc.StatusCode.INVALID_ARGUMENT,
        "page_token",
    ),
    (
        "ListTrainingSteps",
        {"first_step": 5, "last_step": 4},
        grpc.StatusCode.INVALID_ARGUMENT,
        "last_step",
    ),
    (
        "ListTrainingSteps",
        {"first_step": 2**64 - 1},
        grpc.StatusCode.INVALID_ARGUMENT,
        "first_step",
    ),
    (
        "WatchTrainingRun",
        {"after_position": 10**6},
        grpc.StatusCode.INVALID_ARGUMENT,
        "after_position",
    ),
    ("WatchTrainingRun", {"training_run_id": "nobody"}, grpc.StatusCode.NOT_FOUND, ""),
    ("GetDocument", {}, grpc.StatusCode.INVALID_ARGUMENT, "document"),
    ("GetDocument", {"sha256": "AB" * 32}, grpc.StatusCode.INVALID_ARGUMENT, "sha256"),
    ("GetDocument", {"index": 5}, grpc.StatusCode.NOT_FOUND, ""),
    ("GetDocument", {"index": 2**64 - 1}, grpc.StatusCode.NOT_FOUND, ""),
    ("GetDocument", {"example_id": 2}, grpc.StatusCode.NOT_FOUND, ""),
    ("GetTrainingRun", {"page_token": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "page_token"),
    ("ReadDocument", {}, grpc.StatusCode.INVALID_ARGUMENT, "document"),
    ("ReadDocument", {"index": 5}, grpc.StatusCode.NOT_FOUND, ""),
    (
        "ReadDocument",
        {"index": 0, "begin_byte": 4},
        grpc.StatusCode.INVALID_ARGUMENT,
        "begin_byte",
    ),
    (
        "ReadDocument",
        {"index": 0, "begin_byte": 2, "end_byte": 1},
        grpc.StatusCode.INVALID_ARGUMENT,
        "end_byte",
    ),
    ("GetInclusionProof", {}, grpc.StatusCode.INVALID_ARGUMENT, "document"),
    ("GetInclusionProof", {"index": 5}, grpc.StatusCode.NOT_FOUND, ""),
    ("TraceEmergence", {"prompt": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "continuation"),
]


@pytest.mark.parametrize(("method", "fields", "code", "field"), BAD)
async def test_bad_requests_name_the_field(
    server: TrainingServer,
    builder: RecordBuilder,
    method: str,
    fields: dict[str, Any],
    code: grpc.StatusCode,
    field: str,
) -> None:
    request = getattr(pb, f"{method}Request")(**fields)
    if "training_run_id" in request.DESCRIPTOR.fields_by_name and not request.training_run_id:
        request.training_run_id = builder.id
    async with grpc.aio.insecure_channel(server.target) as channel:
        answer = getattr(TrainingServiceStub(channel), method)(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (answer if isinstance(answer, grpc.aio.UnaryUnaryCall) else answer.read())
    failure = failure_of(caught.value)
    assert failure.code is code
    assert list(failure.fields) == ([field] if field else [])
    assert failure.reason


@pytest.mark.parametrize(
    "call",
    [
        lambda runs: runs.document(index=1, example_id=1),
        lambda runs: runs.document(),
        lambda runs: runs.inclusion_proof(),
    ],
)
async def test_client_refuses_requests_that_do_not_name_exactly_one_document(
    client: AsyncClient, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match="exactly one of"):
        await call(client.training_runs)


async def test_numbers_outside_the_protobuf_range_are_named(client: AsyncClient) -> None:
    with pytest.raises(ValueError, match="first_step"):
        await anext(client.training_runs.steps(first_step=-1))
    with pytest.raises(ValueError, match="after_position"):
        client.training_runs.watch(after_position=2**64)


async def test_the_synchronous_client_reads_training_runs(
    server: TrainingServer, builder: RecordBuilder
) -> None:
    def read() -> None:
        with Client(server.target) as client:
            runs = client.training_runs
            assert [run.training_run_id for run in runs.list()] == [builder.id]
            assert runs.get(builder.id).summary.step == 7
            assert [step.step for step in runs.steps(builder.id, stride=3)] == [1, 4, 7]
            assert runs.document(builder.id, index=1).text == b"two two"
            assert verify_inclusion(runs.inclusion_proof(builder.id, index=2))
            with pytest.raises(InvalidRequestError):
                next(runs.trace_emergence(builder.id, prompt="x", continuation=""))
            builder.finish(7)
            with runs.watch(builder.id, after_position=0) as watching:
                events = [event for response in watching for event in response.events]
            assert len(events) == builder.position

    await asyncio.to_thread(read)


async def test_a_record_that_breaks_is_left_out(
    client: AsyncClient, builder: RecordBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await client.training_runs.get(builder.id)
    octets = builder.path.read_bytes()
    builder.path.write_bytes(octets[:50] + b"\xff" + octets[51:])
    with pytest.raises(NotFoundError):
        await client.training_runs.get(builder.id)
    assert str(builder.path) in caplog.text


async def test_reflection_lists_the_service(server: TrainingServer) -> None:
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answer = await call.read()
    names = {service.name for service in answer.list_services_response.service}
    assert "whence.v1.TrainingService" in names
