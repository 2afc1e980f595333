"""Streams of generations with damaged entries end with an error and affect no other stream."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from journal_records import FIRST, RUNNING, SECOND, change, fill
from rpc_errors import failure_of

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2_grpc
from whence.v1 import trace_pb2 as t
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.domain.limits import Limits
from whence_server.generation.recovery import close_interrupted
from whence_server.journal.journal import Journal
from whence_server.rpc import generation_servicer, trace_servicer
from whence_server.rpc.calls import CallLog, make_service_handler
from whence_server.rpc.generation_servicer import GenerationServicer
from whence_server.rpc.serving import Serving
from whence_server.rpc.trace_servicer import TraceServicer

FROM_THE_BEGINNING = "cDE6MA=="  # "p1:0"
PATIENCE_S = 60.0
"""Timeout of a follower, in seconds."""
OF_FIRST = f"""
    writer = 1 AND generation = (SELECT started_position FROM generations
                                 WHERE generation_id = '{FIRST}')
"""


@asynccontextmanager
async def serving(directory):
    journal = await Journal.open(directory)
    server = grpc.aio.server()
    for service, methods in (
        (trace_servicer.SERVICE, TraceServicer(journal, asyncio.Event()).list_methods()),
        (
            generation_servicer.SERVICE,
            GenerationServicer(Serving("tiny", journal), Limits()).list_methods(),
        ),
    ):
        handler = make_service_handler(service, methods, CallLog(lambda _: None))
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)
    await journal.close()


async def offsets_and_failure(journal, generation_id):
    """Return the entries that a follower gets before its error."""
    offsets = []

    async def collect():
        async for batch in journal.follow(generation_id):
            offsets.extend(entry.offset for entry in batch)

    with pytest.raises(RecordDamagedError) as caught:
        await asyncio.wait_for(collect(), PATIENCE_S)
    assert caught.value.metadata["generation_id"] == generation_id
    return offsets, str(caught.value)


@pytest.mark.parametrize(
    ("statement", "before"),
    [
        (f'DELETE FROM entries WHERE "offset" = 3 AND {OF_FIRST}', [1, 2]),
        (f'UPDATE entries SET "offset" = -5 WHERE "offset" = 3 AND {OF_FIRST}', [1, 2]),
        (f'UPDATE entries SET "offset" = 9 WHERE "offset" = 3 AND {OF_FIRST}', [1, 2]),
        (f'UPDATE entries SET "offset" = 2 WHERE "offset" = 3 AND {OF_FIRST}', [1, 2]),
    ],
)
async def test_follower_gets_an_error_for_missing_entries(tmp_path, statement, before):
    await fill(tmp_path)
    change(tmp_path, statement)
    journal = await Journal.open(tmp_path)
    await close_interrupted(journal)
    offsets, failure = await offsets_and_failure(journal, FIRST)
    assert offsets == before
    assert f"the entry after its offset {before[-1]} is missing" in failure
    await journal.close()


async def test_generation_that_cannot_be_finished_is_given_up(tmp_path):
    await fill(tmp_path)
    change(
        tmp_path,
        f"UPDATE generations SET secret = x'00' WHERE generation_id = '{RUNNING}'",
        f"UPDATE entries SET payload = x'ffff', kind = 3 WHERE \"offset\" = 5 AND {OF_FIRST}",
    )
    journal = await Journal.open(tmp_path)
    await close_interrupted(journal)
    assert journal.list_unfinished() == []
    assert (await offsets_and_failure(journal, RUNNING))[0] == [1, 2, 3, 4]
    assert (await offsets_and_failure(journal, FIRST))[0] == [1, 2, 3, 4, 5]
    for generation_id in (FIRST, RUNNING):
        await journal.delete(generation_id)
        with pytest.raises(GenerationNotFoundError):
            await journal.get(generation_id)
    await journal.close()


async def test_reader_ahead_of_the_disk_is_told_how_much_is_not_on_record(tmp_path):
    """The reader saw nine entries; the server died when four were on disk."""
    await fill(tmp_path)
    journal = await Journal.open(tmp_path)
    await close_interrupted(journal)
    await journal.close()
    async with serving(tmp_path) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for after_offset, num_unrecorded in ((4, 0), (5, 1), (9, 5)):
            request = g.ResumeGenerationRequest(generation_id=RUNNING, after_offset=after_offset)
            (response,) = [response async for response in stub.ResumeGeneration(request)]
            assert response.event.first_offset == 5
            assert response.event.finished.finish_reason == g.FINISH_REASON_INTERRUPTED
            assert response.num_unrecorded_offsets == num_unrecorded


async def test_malformed_payload_ends_its_stream_and_no_watch(tmp_path):
    await fill(tmp_path)
    change(tmp_path, f"UPDATE entries SET payload = x'ffff' WHERE \"offset\" = 3 AND {OF_FIRST}")
    async with serving(tmp_path) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        resumed = stub.ResumeGeneration(g.ResumeGenerationRequest(generation_id=FIRST))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in resumed:
                pass
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert failure_of(caught.value).reason == "RECORD_DAMAGED"
        watch = trace_pb2_grpc.TraceServiceStub(channel).WatchGenerations(
            t.WatchGenerationsRequest(after_position=FROM_THE_BEGINNING)
        )
        while (event := await watch.read()).generation_id != SECOND:
            assert event.generation_id == FIRST
        assert event.event.started.generation_id == SECOND
        watch.cancel()
