"""TraceService over a journal, on a socket: bounds of filters, and damaged rows."""

import asyncio
import base64
from contextlib import asynccontextmanager

import grpc
import pytest
from journal_records import DELETED, FIRST, RUNNING, SECOND, change, fill
from rpc_errors import failure_of

from whence.v1 import trace_pb2 as t
from whence.v1 import trace_pb2_grpc
from whence.v1.occurrence_pb2 import EngineResumed, Occurrence
from whence_server.journal.journal import Journal
from whence_server.rpc import trace_servicer
from whence_server.rpc.calls import CallLog, make_service_handler
from whence_server.rpc.trace_servicer import TraceServicer
from whence_server.telemetry.journal import UnreadableEntryError
from whence_server.telemetry.spans.encoder import SpanEncoder

SWAP_IDS = (
    f"UPDATE generations SET generation_id = 'x' WHERE generation_id = '{FIRST}'",
    f"UPDATE generations SET generation_id = '{FIRST}' WHERE generation_id = '{SECOND}'",
    f"UPDATE generations SET generation_id = '{SECOND}' WHERE generation_id = 'x'",
)


@asynccontextmanager
async def serving(directory):
    journal = await Journal.open(directory)
    server = grpc.aio.server()
    methods = TraceServicer(journal, asyncio.Event()).list_methods()
    handler = make_service_handler(trace_servicer.SERVICE, methods, CallLog(lambda _: None))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield trace_pb2_grpc.TraceServiceStub(channel)
    await server.stop(None)
    await journal.close()


ANSWERS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.FAILED_PRECONDITION,
}


async def code_of(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def failed(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (t.GenerationFilter(labels={f"k{i}": "v" for i in range(33)}), "filter.labels"),
        (t.GenerationFilter(labels={f"k{i}": "v" for i in range(998)}), "filter.labels"),
        (t.GenerationFilter(labels={f"k{i}": "v" for i in range(20_000)}), "filter.labels"),
        (t.GenerationFilter(labels={"": "v"}), "filter.labels"),
        (t.GenerationFilter(labels={"k": "v" * 257}), "filter.labels[k]"),
        (t.GenerationFilter(labels={"k" * 257: "v"}), f"filter.labels[{'k' * 64}]"),
        (t.GenerationFilter(model="m" * 1_025), "filter.model"),
        (t.GenerationFilter(trace_id="1" * 33), "filter.trace_id"),
    ],
)
async def test_filter_beyond_its_bounds_is_refused_with_its_field(tmp_path, wanted, field):
    async with serving(tmp_path) as stub:
        refused = await failed(stub.ListGenerations(t.ListGenerationsRequest(filter=wanted)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert list(refused.fields) == [field]
        watch = stub.WatchGenerations(t.WatchGenerationsRequest(filter=wanted))
        refused = await failed(watch.read())
        assert (refused.code, list(refused.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_filter_at_its_bounds_is_served(tmp_path):
    await fill(tmp_path)
    labels = {f"{i:03}" + "k" * 253: "v" * 256 for i in range(31)} | {"team": "blue"}
    wanted = t.GenerationFilter(labels=labels, model="m" * 1_024, trace_id="1" * 32)
    async with serving(tmp_path) as stub:
        page = await stub.ListGenerations(t.ListGenerationsRequest(filter=wanted))
        assert (len(page.generations), page.next_page_token) == (0, "")
        wanted = t.GenerationFilter(labels={"team": "blue"})
        page = await stub.ListGenerations(t.ListGenerationsRequest(filter=wanted))
        assert [s.generation_id for s in page.generations] == [RUNNING, SECOND, FIRST]


async def test_a_page_token_of_megabytes_is_refused(tmp_path):
    async with serving(tmp_path) as stub:
        request = t.ListGenerationsRequest(page_token="A" * (3 << 20))
        refused = await failed(stub.ListGenerations(request))
        assert list(refused.fields) == ["page_token"]


async def test_rows_with_swapped_ids_are_refused(tmp_path):
    await fill(tmp_path)
    change(tmp_path, *SWAP_IDS)
    async with serving(tmp_path) as stub:
        for generation_id in (FIRST, SECOND):
            for call in (
                stub.GetGeneration(t.GetGenerationRequest(generation_id=generation_id)),
                stub.ListSteps(t.ListStepsRequest(generation_id=generation_id)),
                stub.DeleteGeneration(t.DeleteGenerationRequest(generation_id=generation_id)),
            ):
                failure = await failed(call)
                assert failure.code is grpc.StatusCode.DATA_LOSS
                assert failure.reason == "RECORD_DAMAGED"
        page = await stub.ListGenerations(t.ListGenerationsRequest())
        damaged = {s.generation_id: s for s in page.generations if s.damage}
        assert set(damaged) == {FIRST, SECOND}
        assert {s.prompt_preview for s in damaged.values()} == {""}


async def test_get_generation_returns_the_occurrences_and_no_stream_has_them(tmp_path):
    await fill(tmp_path)
    journal = await Journal.open(tmp_path)
    recorded = [Occurrence(num_steps=n, engine_resumed=EngineResumed()) for n in (1, 2)]
    for occurrence in recorded:
        journal.record_occurrence(RUNNING, occurrence.SerializeToString())
    await journal.close()
    async with serving(tmp_path) as stub:
        found = await stub.GetGeneration(t.GetGenerationRequest(generation_id=RUNNING))
        assert list(found.occurrences) == recorded
        assert found.started.generation_id == RUNNING
        found = await stub.GetGeneration(t.GetGenerationRequest(generation_id=FIRST))
        assert list(found.occurrences) == []
        watch = stub.WatchGenerations(t.WatchGenerationsRequest(after_position="cDE6MA=="))
        num_events = {FIRST: 3, SECOND: 3, RUNNING: 2}
        for _ in range(sum(num_events.values())):
            update = await watch.read()
            assert update.event.WhichOneof("event") in {"started", "steps", "finished"}
            num_events[update.generation_id] -= 1
        assert set(num_events.values()) == {0}
        watch.cancel()


async def test_watch_skips_damaged_entries(tmp_path):
    await fill(tmp_path)
    change(tmp_path, *SWAP_IDS)
    async with serving(tmp_path) as stub:
        # "p1:0", the beginning.
        watch = stub.WatchGenerations(t.WatchGenerationsRequest(after_position="cDE6MA=="))
        first = await watch.read()
        assert first.generation_id == first.event.started.generation_id == RUNNING
        watch.cancel()


@pytest.mark.parametrize("other_is_empty", [False, True])
async def test_watch_after_a_position_of_another_journal_is_refused(tmp_path, other_is_empty):
    """It would miss events of this one, without a word."""
    await fill(tmp_path / "full")
    async with serving(tmp_path / "full") as stub:
        watch = stub.WatchGenerations(t.WatchGenerationsRequest(after_position="cDE6MA=="))
        first, second = await watch.read(), await watch.read()
        watch.cancel()
        again = stub.WatchGenerations(t.WatchGenerationsRequest(after_position=first.position))
        assert await again.read() == second
        again.cancel()
    if not other_is_empty:
        await fill(tmp_path / "other")
    async with serving(tmp_path / "other") as stub:
        watch = stub.WatchGenerations(t.WatchGenerationsRequest(after_position=first.position))
        failure = await failed(asyncio.wait_for(watch.read(), 10))
    assert failure.fields.keys() == {"after_position"}
    assert "another journal" in failure.fields["after_position"]


async def test_watch_takes_positions_of_servers_that_named_no_journal(tmp_path):
    await fill(tmp_path)
    async with serving(tmp_path) as stub:
        beginning = stub.WatchGenerations(t.WatchGenerationsRequest(after_position="cDE6MA=="))
        first, second = await beginning.read(), await beginning.read()
        number = base64.b64decode(first.position).rpartition(b":")[2]
        position = base64.b64encode(b"p1:" + number).decode()
        watch = stub.WatchGenerations(t.WatchGenerationsRequest(after_position=position))
        assert await watch.read() == second
        watch.cancel()
        beginning.cancel()


@pytest.mark.parametrize("position", [b"p1:99999", b"p1:", b"p2:12:0", b"p2:1", b"1", b"p1:-1"])
async def test_watch_after_a_position_that_was_never_returned_is_refused(tmp_path, position):
    await fill(tmp_path)
    async with serving(tmp_path) as stub:
        for token in (base64.b64encode(position).decode(), position.decode()):
            watch = stub.WatchGenerations(t.WatchGenerationsRequest(after_position=token))
            failure = await failed(asyncio.wait_for(watch.read(), 10))
            assert failure.fields.keys() == {"after_position"}


async def test_exporters_skip_damaged_entries(tmp_path):
    await fill(tmp_path)
    change(tmp_path, *SWAP_IDS)
    journal = await Journal.open(tmp_path)
    encoder, unreadable = SpanEncoder(journal), 0
    for entry in reversed(await journal.read_committed(0)):
        try:
            await encoder.encode(entry)
        except UnreadableEntryError:
            unreadable += 1
    assert unreadable > 0
    await journal.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET {column} = {value}",
        "UPDATE {table} SET {column} = {value} WHERE rowid_of_first",
    ],
)
@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("generations", column, values)
        for column, values in (
            ("writer", ("2", "-1")),
            ("secret", ("NULL", "x''", "zeroblob(32)")),
            ("trace_id", ("''", "CAST(x'ff' AS TEXT)")),
            ("model", ("''", "CAST(x'ff' AS TEXT)")),
            ("start_time_ns", ("0", "-9223372036854775808", "9223372036854775807")),
            ("request_digest", ("''", "CAST(x'ff' AS TEXT)")),
            ("labels", ("''", "'{'", "'null'", "CAST(x'ff' AS TEXT)", "'{\"a\": {}}'")),
            ("prompt_preview", ("CAST(x'ff' AS TEXT)", "CAST(zeroblob(9) AS TEXT)")),
            ("num_prompt_tokens", ("-1", "9223372036854775807")),
            ("finish_reason", ("NULL", "-1", "99", "9223372036854775807")),
            ("num_generated_tokens", ("-1", "9223372036854775807")),
            ("text_preview", ("CAST(x'ff' AS TEXT)",)),
            ("deleted", ("0", "1", "2", "-1")),
        )
    ]
    + [
        ("entries", column, values)
        for column, values in (
            ("payload", ("NULL", "x''", "x'ff'", "zeroblob(100)")),
            ("inner_digest", ("x''",)),
            ("kind", ("0", "99", "-1")),
            ("hash", ("x''",)),
        )
    ],
)
async def test_no_damaged_column_causes_an_internal_error(
    tmp_path, statement, table, column, values
):
    """Each answer is a record or an error that describes its damage, never INTERNAL."""
    await fill(tmp_path / "whole")
    for number, value in enumerate(values):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "journal.db").write_bytes((tmp_path / "whole" / "journal.db").read_bytes())
        one = f"generation_id = '{FIRST}'" if table == "generations" else "position = 3"
        text = statement.format(table=table, column=column, value=value)
        change(directory, text.replace("rowid_of_first", one))
        async with serving(directory) as stub:
            await stub.ListGenerations(t.ListGenerationsRequest())
            for generation_id in (FIRST, SECOND, DELETED, RUNNING):
                for call in (
                    stub.GetGeneration(t.GetGenerationRequest(generation_id=generation_id)),
                    stub.ListSteps(t.ListStepsRequest(generation_id=generation_id)),
                    stub.DeleteGeneration(t.DeleteGenerationRequest(generation_id=generation_id)),
                ):
                    assert await code_of(call) in ANSWERS, value
