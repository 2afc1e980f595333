"""Whatever a collector does over gRPC or HTTP: no span is lost, and their order is kept."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
from faulty_collector import (
    FORBIDDEN,
    INTERNAL,
    REFUSALS,
    REFUSED,
    UNAVAILABLE,
    Answer,
    Cut,
    Fault,
    FaultyCollector,
    Garbage,
    Noise,
    Partial,
    Slow,
    exhausted,
)
from journal_export import JournalExport
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from telemetry_journal import MemoryJournal

from whence_server.domain.otlp import OtlpProtocol
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.export.otlp_http import OtlpHttpSink
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.spans.encoder import SpanEncoder


class Clock:
    """Remembers how long was slept, and lets only the event loop run meanwhile."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def sleep(self, seconds: float) -> None:
        if seconds:
            self.delays.append(seconds)
        await asyncio.sleep(0.001)


@pytest.fixture(params=list(OtlpProtocol))
async def collector(request):
    async with FaultyCollector(request.param).running() as collector:
        yield collector


@pytest.fixture
def journal() -> MemoryJournal:
    journal = MemoryJournal()
    journal.append_generation("g1", num_steps=40)
    journal.append_generation("g2", num_steps=10, num_sequences=3)
    return journal


def sink_of(collector: FaultyCollector, **settings: object) -> SpanSink:
    sink = OtlpGrpcSink if collector.protocol is OtlpProtocol.GRPC else OtlpHttpSink
    return sink(collector.settings(**settings))


@asynccontextmanager
async def exporting(journal, collector, clock=None, settings=None, *, hide_words=False, **options):
    exporter = JournalExport(
        journal,
        sink_of(collector, **(settings or {})),
        hide_words=hide_words,
        sleep=(clock or Clock()).sleep,
        # The clock is quick: attempts that would take days pass within a second.
        **{"max_batch_spans": 16, "long_patience": 10_000, **options},
    )
    exporter.start()
    try:
        yield exporter
    finally:
        await exporter.close()


async def expected_spans(journal: MemoryJournal) -> dict[bytes, Span]:
    """Return the expected spans by id, in their order of arrival."""
    encoder = SpanEncoder(journal)
    spans = [
        ScopeSpans.FromString(piece).spans[0]
        for entry in journal.entries
        for piece in await encoder.encode(entry)
    ]
    return {span.span_id: span for span in spans}


async def assert_none_lost(
    journal: MemoryJournal, collector: FaultyCollector, but: set[bytes] = frozenset()
) -> None:
    """Each span that was not set aside arrived, and always the same.

    They arrive in order. Where one was set aside, spans that wait were sent ahead as witnesses,
    and once more in their place.
    """
    expected = await expected_spans(journal)
    arrived = list(dict.fromkeys(span.span_id for span in collector.spans))
    wanted = [span_id for span_id in expected if span_id not in but]
    assert sorted(arrived) == sorted(wanted)
    times = Counter(span.span_id for span in collector.spans)
    ahead = {span_id for span_id in arrived if but and times[span_id] > 1}
    assert [i for i in arrived if i not in ahead] == [i for i in wanted if i not in ahead]
    assert all(span == expected[span.span_id] for span in collector.spans)


FAULTS = {
    "unavailable": [UNAVAILABLE] * 3,
    "exhausted": [exhausted(3)] * 2,
    "cut before it is stored": [Cut(stored=False)],
    "cut after it is stored": [Cut(stored=True)],
    "garbage": [Garbage()] * 3,
    "noise": [Noise()],
    "internal for long": [INTERNAL] * 19,
    "a bad day": [
        UNAVAILABLE,
        Cut(stored=True),
        exhausted(3),
        INTERNAL,
        Garbage(),
        Noise(),
        INTERNAL,
        Cut(stored=False),
        UNAVAILABLE,
    ],
}


@pytest.mark.parametrize("at_start", [True, False])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
async def test_a_fault_loses_nothing(journal, collector, faults, at_start):
    if at_start:
        collector.faults.extend(faults)
    async with exporting(journal, collector) as exporter:
        assert await exporter.flush(30)
        if not at_start:
            collector.faults.extend(faults)
        journal.append_generation("g3", num_steps=40)
        assert await exporter.flush(30)
        stats, lag = replace(exporter.stats), exporter.measure_lag()
    await assert_none_lost(journal, collector)
    assert not collector.faults
    assert stats.num_retries >= len(faults)
    assert stats.num_set_aside == stats.num_rejected == lag.num_entries == 0
    assert stats.num_exported == len(await expected_spans(journal))
    assert stats.last_error


async def test_a_collector_beyond_the_timeout_loses_no_span(journal, collector):
    collector.faults.extend([Slow(0.5), Slow(0.5), Slow(0.0)])
    async with exporting(journal, collector, settings={"timeout_s": 0.1}) as exporter:
        assert await exporter.flush(30)
        # A busy machine may miss the tenth of a second once more.
        assert exporter.stats.num_retries >= 2
    assert not collector.faults
    await assert_none_lost(journal, collector)


async def test_a_collector_that_is_away_and_comes_back(journal, collector):
    collector.refuse_connections(True)
    async with exporting(journal, collector) as exporter:
        async with asyncio.timeout(30):
            while exporter.stats.num_retries < 5:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.001)
        assert exporter.stats.retrying
        assert exporter.measure_lag().num_entries == len(journal.entries)
        collector.refuse_connections(False)
        assert await exporter.flush(30)
        assert not exporter.stats.retrying
    await assert_none_lost(journal, collector)


async def test_the_requested_delay_is_kept(journal, collector):
    clock = Clock()
    unavailable = Answer(grpc.StatusCode.UNAVAILABLE, 503, retry_delay_s=90)
    collector.faults.extend([exhausted(7), unavailable, exhausted(1e6)])
    async with exporting(journal, collector, clock) as exporter:
        assert await exporter.flush(30)
    await assert_none_lost(journal, collector)
    assert clock.delays == [7, 90, 3_600]


async def test_a_retry_after_date_is_kept(journal):
    clock = Clock()
    async with FaultyCollector(OtlpProtocol.HTTP_PROTOBUF).running() as collector:
        collector.faults.append(exhausted(600, as_date=True))
        async with exporting(journal, collector, clock) as exporter:
            assert await exporter.flush(30)
    (delay,) = clock.delays
    assert 590 < delay <= 600


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
async def test_a_collector_that_refuses_everything_until_it_is_mended_loses_no_span(
    journal, collector, fault, caplog
):
    """A wrong port, path, key or protocol has this effect: all is held, and the alarm is raised."""
    collector.always = fault
    async with exporting(journal, collector, patience=4, long_patience=6) as exporter:
        async with asyncio.timeout(30):
            while exporter.stats.num_requests < 60:  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.001)
        stats, lag = replace(exporter.stats), exporter.measure_lag()
        collector.always = None
        collector.spans.clear()
        journal.append_generation("g3", num_steps=4)
        assert await exporter.flush(30)
        assert not exporter.stats.refusing
        assert exporter.stats.num_set_aside == exporter.stats.num_rejected == 0
    assert stats.retrying
    assert lag.num_entries > 0
    assert stats.refusing is not is_of_the_moment(fault, collector.protocol)
    assert caplog.text.count("the destination accepts no spans") == stats.refusing
    assert {span.span_id for span in collector.spans} == (await expected_spans(journal)).keys()


def is_of_the_moment(fault: Fault, protocol: OtlpProtocol) -> bool:
    """Return whether the answer is retryable by OTLP's tables."""
    if protocol is OtlpProtocol.GRPC:
        return fault == REFUSALS["moved"]  # OUT_OF_RANGE
    return fault == REFUSALS["exhausted"]  # 429


async def test_a_generation_whose_every_span_is_bad_is_set_aside_and_no_other(
    journal, collector, caplog
):
    expected = await expected_spans(journal)
    poison = set(list(expected)[:18])
    collector.poison = poison
    async with exporting(journal, collector) as exporter:
        assert await exporter.flush(60)
        stats = replace(exporter.stats)
    assert {span.span_id for span in collector.spans} == expected.keys() - poison
    assert stats.num_set_aside == len(poison)
    assert len(stats.newest_set_aside) == 8
    for span_id in poison:
        assert f"span {span_id.hex()} (" in caplog.text


async def test_a_partial_success_is_counted_and_not_repeated(journal, collector, caplog):
    collector.faults.append(Partial(3))
    async with exporting(journal, collector) as exporter:
        assert await exporter.flush(30)
        stats = replace(exporter.stats)
    rejected = set(list(await expected_spans(journal))[:3])
    await assert_none_lost(journal, collector, but=rejected)
    assert stats.num_rejected == 3
    assert stats.num_exported == len(collector.spans)
    assert "3 of 15 spans were rejected: PARTIAL_SUCCESS: too old" in caplog.text


async def test_a_batch_of_which_all_spans_are_rejected_is_sent_again(journal, collector):
    """A partial success that rejects all spans counts as a refusal."""
    collector.faults.append(Partial(1_000))
    async with exporting(journal, collector) as exporter:
        assert await exporter.flush(30)
        stats = replace(exporter.stats)
    await assert_none_lost(journal, collector)
    assert (stats.num_rejected, stats.num_set_aside) == (0, 0)


POISON_FAULTS = {
    "refused": REFUSED,
    "internal": INTERNAL,
    "unavailable": UNAVAILABLE,
    "exhausted": exhausted(3),
    "forbidden": FORBIDDEN,
    "cut": Cut(stored=False),
    "garbage": Garbage(),
}


@pytest.mark.parametrize("fault", POISON_FAULTS.values(), ids=POISON_FAULTS)
async def test_a_bad_span_is_set_aside_once(journal, collector, fault, caplog):
    expected = await expected_spans(journal)
    poison = set(list(expected)[20:22]) | {list(expected)[50]}
    collector.poison, collector.poison_fault = poison, fault
    async with exporting(journal, collector, patience=4, long_patience=4) as exporter:
        assert await exporter.flush(30)
        stats = replace(exporter.stats)
    await assert_none_lost(journal, collector, but=poison)
    assert stats.num_set_aside == 3
    assert stats.num_exported == len(expected) - 3
    told = [record.message for record in caplog.records if "is set aside" in record.message]
    assert len(told) == 3
    for message, span_id in zip(told, [i for i in expected if i in poison], strict=True):
        assert f"span {span_id.hex()}" in message
        assert expected[span_id].trace_id.hex() in message
        assert "as told" in message or not isinstance(fault, Answer)


async def test_a_span_on_which_the_collector_times_out_is_set_aside(journal, collector):
    poison = set(list(await expected_spans(journal))[20:21])
    collector.poison, collector.poison_fault = poison, Slow(2.0, stored=False)
    # Enough for all other spans, on a busy machine too.
    settings = {"timeout_s": 0.4}
    async with exporting(journal, collector, settings=settings, long_patience=2) as exporter:
        assert await exporter.flush(60)
        assert exporter.stats.num_set_aside == 1
    await assert_none_lost(journal, collector, but=poison)


SECRET = "zanzibar quokka"
SAYING_THE_SECRET = [
    Partial(1, SECRET),
    Answer(grpc.StatusCode.UNAVAILABLE, 503, message=SECRET),
    Answer(grpc.StatusCode.INTERNAL, 500, message=f"{SECRET}: no"),
    Answer(grpc.StatusCode.PERMISSION_DENIED, 403, message=SECRET),
    Garbage("text/zanzibar", f"\xff{SECRET}".encode()),
]


@pytest.mark.parametrize("hide_words", [True, False])
async def test_content_in_a_collectors_error_is_not_logged(journal, collector, caplog, hide_words):
    caplog.set_level("DEBUG")
    collector.faults.extend(SAYING_THE_SECRET)
    collector.poison = set(list(await expected_spans(journal))[40:41])
    collector.poison_fault = Answer(grpc.StatusCode.INVALID_ARGUMENT, 400, message=SECRET)
    async with exporting(journal, collector, hide_words=hide_words) as exporter:
        assert await exporter.flush(30)
        stats = replace(exporter.stats)
    assert (stats.num_rejected, stats.num_set_aside) == (1, 1)
    told = "".join(record.getMessage() for record in caplog.records) + stats.last_error
    assert ("zanzibar" in told) is not hide_words
    assert ("quokka" in told) is not hide_words
    assert ("INVALID_ARGUMENT" in told) or ("400 Bad Request" in told)


async def test_a_batch_beyond_the_collectors_limit_is_halved_at_once(journal, collector):
    collector.max_spans = 4
    clock = Clock()
    async with exporting(journal, collector, clock) as exporter:
        assert await exporter.flush(30)
        assert exporter.stats.num_set_aside == 0
    await assert_none_lost(journal, collector)
    assert clock.delays == []
    assert {len(spans) for spans in collector.requests} >= {15, 4, 3}


async def test_unusual_answers_lose_no_span(journal):
    """Over HTTP, a page that is none of OTLP's does not pass for an answer."""
    async with FaultyCollector(OtlpProtocol.HTTP_PROTOBUF).running() as collector:
        collector.faults.extend(
            [
                Garbage("text/html", b"<html>Please log in</html>"),
                Garbage("text/plain", b"OK"),
                Garbage("application/json", b"[1"),
                Garbage("application/json", b'{"error": "no such route"}'),
                Answer(grpc.StatusCode.OK, 302),
                Answer(grpc.StatusCode.OK, 404),
                Answer(grpc.StatusCode.OK, 401),
            ]
        )
        async with exporting(journal, collector) as exporter:
            assert await exporter.flush(30)
            assert exporter.stats.num_retries == 7
        await assert_none_lost(journal, collector)
