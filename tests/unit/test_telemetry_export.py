"""The durable exporter: whatever happens to it or to the collector, every span arrives."""

import asyncio
import random
from contextlib import asynccontextmanager

import grpc
import pytest
from journal_export import CURSOR, JournalExport
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from telemetry_journal import MemoryJournal
from waiting import wait_until

from whence_server.demo.receiver import Drop, Fail, Receiver, Reject, Wait
from whence_server.domain.entries import EntryKind
from whence_server.domain.otlp import OtlpSettings
from whence_server.telemetry.export.backoff import Backoff
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.export.outcomes import Accepted, Outcome
from whence_server.telemetry.spans.encoder import SpanEncoder


class Clock:
    """Remembers how long was slept, and lets only the event loop run meanwhile."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.001)

    @property
    def delays(self) -> list[float]:
        return [seconds for seconds in self.slept if seconds]


def exporter_of(journal, sink, clock=None, **options) -> JournalExport:
    options = {"max_batch_spans": 16, **options}
    return JournalExport(journal, sink, sleep=(clock or Clock()).sleep, **options)


@asynccontextmanager
async def receiving(*, started: bool = True, keep: bool = True):
    receiver = Receiver(keep=keep)
    if started:
        await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.close()


@asynccontextmanager
async def exporting(journal, receiver, clock=None, **options):
    exporter = exporter_of(
        journal, OtlpGrpcSink(OtlpSettings(endpoint=receiver.endpoint)), clock, **options
    )
    exporter.start()
    try:
        yield exporter
    finally:
        await exporter.close()


async def expected_of(journal: MemoryJournal) -> dict[bytes, bytes]:
    encoder = SpanEncoder(journal)
    pieces = [
        ScopeSpans.FromString(piece)
        for entry in journal.entries
        for piece in await encoder.encode(entry)
    ]
    return {piece.spans[0].span_id: piece.SerializeToString() for piece in pieces}


def pieces_in(requests: list[bytes]) -> list[bytes]:
    """Split requests into their spans, as serialised by protobuf."""
    return [
        ScopeSpans(spans=[span]).SerializeToString()
        for request in requests
        for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


async def assert_all_arrived(journal: MemoryJournal, receiver: Receiver) -> None:
    """Assert that all spans arrived, and that duplicates are byte-identical."""
    expected = await expected_of(journal)
    taken = [ScopeSpans(spans=[span]).SerializeToString() for span in receiver.spans]
    assert set(taken) == set(expected.values())
    assert set(pieces_in(receiver.requests)) <= set(expected.values())


@pytest.fixture
def journal() -> MemoryJournal:
    journal = MemoryJournal()
    journal.append_generation("g1", num_steps=40)
    journal.append_generation("g2", num_steps=10, num_sequences=3)
    return journal


async def test_everything_arrives_once_and_the_cursor_follows(journal):
    async with receiving() as receiver, exporting(journal, receiver) as exporter:
        assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
        expected = await expected_of(journal)
        assert receiver.num_spans == len(expected) == exporter.stats.num_exported
        assert journal.cursors[CURSOR] == len(journal.entries)
        assert journal.advances == sorted(journal.advances)
        assert exporter.measure_lag().num_entries == 0
        assert exporter.stats.num_retries == 0
        assert max(len(pieces_in([request])) for request in receiver.requests) <= 16
        # What is committed later is sent later.
        journal.append_generation("g3", num_steps=2)
        await receiver.wait_for(len(expected) + 5)
        await assert_all_arrived(journal, receiver)


async def test_the_cursor_moves_only_after_the_answer(journal):
    async with receiving() as receiver, exporting(journal, receiver) as exporter:
        await exporter.flush(60)
        before = journal.cursors[CURSOR]
        receiver.answers.append(Wait(3600))
        journal.append_generation("g3", num_steps=2)
        num_requests = exporter.stats.num_requests
        await wait_until(lambda: exporter.stats.num_requests > num_requests)
        assert not await exporter.flush(0.05)
        assert journal.cursors[CURSOR] == before


async def test_a_temporarily_unreachable_collector_loses_no_span(journal):
    clock = Clock()
    async with (
        receiving(started=False) as receiver,
        exporting(journal, receiver, clock) as exporter,
    ):
        await wait_until(lambda: exporter.stats.num_retries >= 3)
        assert not journal.cursors
        assert exporter.measure_lag().num_entries == len(journal.entries)
        assert "UNAVAILABLE" in exporter.stats.last_error
        await receiver.start()
        assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
        await receiver.stop()
        journal.append_generation("g3", num_steps=20)
        retries = exporter.stats.num_retries
        await wait_until(lambda: exporter.stats.num_retries >= retries + 3)
        await receiver.start()
        assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)


async def test_a_connection_that_breaks_after_the_spans_were_stored(journal):
    async with receiving() as receiver:
        receiver.answers += [Drop(), Wait(0), Drop()]
        async with exporting(journal, receiver) as exporter:
            assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
        expected = await expected_of(journal)
        again = [one for one in receiver.requests if receiver.requests.count(one) == 2]
        assert len(again) == 4  # two batches came twice
        assert receiver.num_spans == len(expected) + len(pieces_in(again)) // 2
        assert exporter.stats.num_retries >= 2


class MortalSink:
    """Keeps what it is sent, and kills its exporter at the n-th request, before or after."""

    def __init__(self, deaths: list[tuple[int, bool]]) -> None:
        self.requests: list[bytes] = []
        self.died = asyncio.Event()
        self._deaths = deaths
        self._num_requests = 0

    async def export(self, request: bytes) -> Outcome:
        self._num_requests += 1
        if self._deaths and self._num_requests == self._deaths[0][0]:
            _, stored = self._deaths.pop(0)
            if stored:
                self.requests.append(request)
            self.died.set()
            await asyncio.Event().wait()
        self.requests.append(request)
        return Accepted()

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(8))
async def test_an_exporter_killed_at_any_point_resumes_after_its_restart(journal, seed):
    chance = random.Random(seed)
    places = sorted(chance.sample(range(1, 12), 4))
    sink = MortalSink([(place, chance.random() < 0.5) for place in places])
    for _ in places:
        exporter = exporter_of(journal, sink, max_batch_spans=chance.randint(1, 12))
        exporter.start()
        await sink.died.wait()
        sink.died.clear()
        await exporter.close()
        # A cursor is durable with a commit only: the latest moves may be lost with the process.
        journal.cursors[CURSOR] = chance.choice([0, *journal.advances])
    exporter = exporter_of(journal, sink)
    exporter.start()
    assert await exporter.flush(60)
    await exporter.close()
    assert set(pieces_in(sink.requests)) == set((await expected_of(journal)).values())


async def test_the_delay_that_the_collector_requests_is_kept(journal):
    clock = Clock()
    async with receiving() as receiver:
        receiver.answers += [
            Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_delay_s=7.5),
            Fail(grpc.StatusCode.UNAVAILABLE, retry_delay_s=90.25),
            Fail(grpc.StatusCode.UNAVAILABLE),
        ]
        async with exporting(journal, receiver, clock) as exporter:
            assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
    assert clock.delays[:2] == [7.5, 90.25]
    assert 0.2 <= clock.delays[2] <= 0.4
    assert len(clock.delays) == 3 == exporter.stats.num_retries


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        # Not retryable by OTLP, but they say nothing against the spans: they are kept.
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        # These speak of the collector more often than of the spans.
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ],
)
async def test_retryable_answers_are_retried(journal, code):
    async with receiving() as receiver:
        receiver.answers += [Fail(code)] * 3
        async with exporting(journal, receiver) as exporter:
            assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
        assert exporter.stats.num_retries == 3
        assert exporter.stats.num_set_aside == 0


async def test_only_the_bad_span_is_set_aside_and_the_rest_arrives(journal, caplog):
    expected = await expected_of(journal)
    poison = set(list(expected)[5:7]) | {list(expected)[30]}
    async with receiving() as receiver:
        receiver.is_poison = lambda span: span.span_id in poison
        async with exporting(journal, receiver) as exporter:
            assert await exporter.flush(60)
        assert {span.span_id for span in receiver.spans} == expected.keys() - poison
    assert exporter.stats.num_set_aside == 3
    assert exporter.stats.num_exported == len(expected) - 3
    assert journal.cursors[CURSOR] == len(journal.entries)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2  # one a batch
    assert "2 of 15 spans" in errors[0]
    assert "INVALID_ARGUMENT" in errors[0]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # without RetryInfo
    ],
)
async def test_a_refused_batch_is_not_sent_again_unchanged(journal, code):
    async with receiving() as receiver:
        receiver.answers.append(Fail(code))
        async with exporting(journal, receiver) as exporter:
            assert await exporter.flush(60)
        assert len(receiver.requests) == len(set(receiver.requests))
        await assert_all_arrived(journal, receiver)
        assert exporter.stats.num_retries == exporter.stats.num_set_aside == 0


async def test_partial_success_is_counted_and_not_repeated(journal, caplog):
    async with receiving() as receiver:
        receiver.answers.append(Reject(3, "too old"))
        async with exporting(journal, receiver) as exporter:
            assert await exporter.flush(60)
    num_spans = len(await expected_of(journal))
    assert exporter.stats.num_rejected == 3
    assert exporter.stats.num_exported == receiver.num_spans == num_spans - 3
    assert exporter.stats.last_error == "PARTIAL_SUCCESS: too old"
    assert "3 of 15 spans were rejected: PARTIAL_SUCCESS: too old" in caplog.text


async def test_an_unreadable_entry_does_not_stop_the_export(journal):
    journal.entries[2] = journal.entries[2]._replace(payload=b"\xff")
    async with receiving() as receiver, exporting(journal, receiver) as exporter:
        assert await exporter.flush(60)
        assert exporter.stats.num_unreadable == 1
        whole = MemoryJournal()
        whole.append_generation("g1", num_steps=40)
        whole.append_generation("g2", num_steps=10, num_sequences=3)
        assert receiver.num_spans == len(await expected_of(whole)) - 1


async def test_entries_without_spans_move_the_cursor_too(journal):
    quiet = MemoryJournal()
    quiet.append_generation("g", num_steps=50, flags=0)
    async with receiving() as receiver, exporting(quiet, receiver) as exporter:
        assert await exporter.flush(60)
        assert quiet.cursors[CURSOR] == len(quiet.entries)
        assert receiver.requests == []
        assert exporter.stats.num_requests == 0


async def test_an_error_of_the_journal_does_not_end_the_export(journal, monkeypatch):
    read, failures = journal.read_committed, [OSError("disk"), OSError("disk")]

    async def troubled(after_position: int, limit: int):
        if failures:
            raise failures.pop()
        return await read(after_position, limit)

    monkeypatch.setattr(journal, "read_committed", troubled)
    async with receiving() as receiver, exporting(journal, receiver):
        await receiver.wait_for(len(await expected_of(journal)))
        await assert_all_arrived(journal, receiver)


async def test_a_sink_that_raises_is_retried(journal):
    class Raising(MortalSink):
        raised = False

        async def export(self, request: bytes) -> Outcome:
            if not self.raised:
                self.raised = True
                raise OSError("no route")
            return await super().export(request)

    sink = Raising([])
    exporter = exporter_of(journal, sink)
    exporter.start()
    assert await exporter.flush(60)
    await exporter.close()
    assert set(pieces_in(sink.requests)) == set((await expected_of(journal)).values())
    assert exporter.stats.last_error == "OSError: no route"


async def test_batches_are_bounded_in_bytes_too(journal):
    async with (
        receiving() as receiver,
        exporting(journal, receiver, max_batch_spans=512, max_batch_bytes=6_000) as exporter,
    ):
        assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
        overhead = 300  # the envelope
        assert max(map(len, receiver.requests)) <= 6_000 + overhead


async def test_the_spans_of_one_entry_go_out_in_several_requests_if_they_are_many():
    journal = MemoryJournal()
    journal.append_generation("g", 1, num_sequences=40)
    async with receiving() as receiver, exporting(journal, receiver) as exporter:
        assert await exporter.flush(60)
        await assert_all_arrived(journal, receiver)
        assert max(map(len, map(spans_in, receiver.requests))) <= 16


def spans_in(request: bytes) -> list[bytes]:
    return pieces_in([request])


@pytest.mark.parametrize("gzip", [False, True])
async def test_a_burst_of_twenty_thousand_steps_all_arrives(gzip):
    journal = MemoryJournal()
    for number in range(20):
        journal.append_generation(f"g{number}", num_steps=1_000)
    # The journal in memory searches; what is asked of it here is found by dictionary.
    starts = {e.generation_id: e for e in journal.entries if e.kind is EntryKind.STARTED}
    steps_of = {
        name: [
            entry
            for entry in journal.entries
            if entry.generation_id == name and entry.kind is EntryKind.STEP
        ]
        for name in starts
    }

    async def read(generation_id, after_offset=0, limit=1024, kinds=None):
        if EntryKind.STARTED in kinds:
            return [starts[generation_id]]
        steps = steps_of[generation_id]  # offsets 2 to 1,001
        begin = max(after_offset - 1, 0)
        return steps[begin : min(begin + limit, after_offset - 1 + limit)]

    journal.read = read
    async with receiving() as receiver:
        settings = OtlpSettings(endpoint=receiver.endpoint, headers={"x-key": "1"}, gzip=gzip)
        sink = OtlpGrpcSink(settings)
        exporter = exporter_of(journal, sink, max_batch_spans=512)
        exporter.start()
        assert await exporter.flush(60)
        await exporter.close()
        assert len({span.span_id for span in receiver.spans}) == receiver.num_spans == 20_060
        names = [span.name for span in receiver.spans]
        assert names.count("decode_step") == 20_000
        assert names.count("decode") == names.count("text_completion demo") == 20


def test_backoff_grows_to_its_bound_and_starts_over():
    backoff = Backoff(0.1, 30.0, jitter=lambda: 1.0)
    delays = [backoff.choose_next_s() for _ in range(12)]
    assert delays[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert delays[-1] == 30.0 == max(delays)
    assert backoff.choose_next_s(at_least_s=100.0) == 100.0
    backoff.reset()
    assert backoff.choose_next_s() == pytest.approx(0.1)
    assert Backoff(0.1, 30.0, jitter=lambda: 0.0).choose_next_s() == pytest.approx(0.05)
    assert backoff.choose_longest_s() == 30.0
