"""Exporters that users bring along, with the OpenTelemetry SDK's interface."""

import asyncio
import io
import threading
from collections.abc import Sequence

import pytest
from faulty_collector import spans_in
from journal_export import JournalExport
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telemetry_journal import MemoryJournal

from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.export.outcomes import Accepted, Failed
from whence_server.telemetry.export.plugged import PluggedSink, load_exporter
from whence_server.telemetry.export.readable import make_readable_spans
from whence_server.telemetry.export.resource import Envelope, make_service_resource
from whence_server.telemetry.spans.encoder import SpanEncoder

LOCAL, REMOTE = 0x101, 0x301


def journal_of_two() -> MemoryJournal:
    journal = MemoryJournal()
    journal.append_generation("g1", num_steps=20)
    journal.append_generation("g2", num_steps=5, num_sequences=2)
    return journal


async def whence_request() -> bytes:
    journal = journal_of_two()
    encoder = SpanEncoder(journal)
    pieces = [piece for entry in journal.entries for piece in await encoder.encode(entry)]
    return Envelope(make_service_resource("0"), "0").make_request(pieces)


def all_of_otlp() -> ExportTraceServiceRequest:
    """Everything that a span can hold."""
    values = {
        "bool": AnyValue(bool_value=False),
        "int": AnyValue(int_value=-3),
        "double": AnyValue(double_value=0.5),
        "string": AnyValue(string_value="é"),
        "array": AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)])),
        "map": AnyValue(
            kvlist_value=KeyValueList(values=[KeyValue(key="k", value=AnyValue(bool_value=True))])
        ),
    }
    attributes = [KeyValue(key=key, value=value) for key, value in values.items()]
    span = Span(
        trace_id=bytes(range(1, 17)),
        span_id=bytes(range(1, 9)),
        parent_span_id=bytes(range(2, 10)),
        trace_state="vendor=x",
        flags=REMOTE,
        name="all",
        kind=Span.SPAN_KIND_CONSUMER,
        start_time_unix_nano=5,
        end_time_unix_nano=7,
        attributes=attributes,
        events=[Span.Event(name="event", time_unix_nano=6, attributes=attributes)],
        links=[
            Span.Link(
                trace_id=bytes(range(3, 19)),
                span_id=bytes(range(3, 11)),
                attributes=attributes,
                flags=LOCAL,
            )
        ],
        status=Status(code=Status.STATUS_CODE_ERROR, message="broken"),
    )
    scope = InstrumentationScope(name="scope", version="1")
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(attributes=attributes[:4]),
                scope_spans=[ScopeSpans(scope=scope, spans=[span])],
            )
        ]
    )


async def test_the_sdks_encoder_gives_back_the_request():
    """The SDK's OTLP exporters send the same fields as whence's."""
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    request = await whence_request()
    again = encoder.encode_spans(list(make_readable_spans(request)))
    expected = ExportTraceServiceRequest.FromString(request)
    assert sum(len(s.scope_spans[0].spans) for s in expected.resource_spans) > 30
    _normalise(again)
    _normalise(expected)
    assert again == expected


def test_the_sdks_encoder_gives_back_every_kind_of_field():
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    request = all_of_otlp()
    again = encoder.encode_spans(list(make_readable_spans(request.SerializeToString())))
    _normalise(again)
    _normalise(request)
    assert again == request


def _normalise(request: ExportTraceServiceRequest) -> None:
    """Remove differences of the SDK's encoder: omitted fields, and order."""
    for resource_spans in request.resource_spans:
        resource_spans.resource.attributes.sort(key=lambda attribute: attribute.key)
        for span in resource_spans.scope_spans[0].spans:
            span.status.SetInParent()
            span.flags &= ~0xFF  # a span is sampled if it is sent
            for link in span.links:
                link.flags |= LOCAL


async def test_every_field_of_a_readable_span_is_set():
    (span,) = make_readable_spans(all_of_otlp().SerializeToString())
    assert span.name == "all"
    assert span.context.trace_id == int.from_bytes(bytes(range(1, 17)))
    assert span.context.trace_state.get("vendor") == "x"
    assert span.context.trace_flags.sampled
    assert (span.parent.span_id, span.parent.is_remote) == (0x0203040506070809, True)
    assert span.attributes == {
        "bool": False,
        "int": -3,
        "double": 0.5,
        "string": "é",
        "array": (1,),
        "map": {"k": True},
    }
    assert span.events[0].timestamp == 6
    assert span.links[0].context.span_id == 0x030405060708090A
    assert (span.kind.name, span.status.status_code.name) == ("CONSUMER", "ERROR")
    assert (span.status.description, span.start_time, span.end_time) == ("broken", 5, 7)
    assert span.resource.attributes["string"] == "é"
    assert span.instrumentation_scope.name == "scope"


async def test_the_sdks_console_exporter_prints_the_spans():
    out = io.StringIO()
    sink = PluggedSink(ConsoleSpanExporter(out=out), "console")
    request = await whence_request()
    assert await sink.export(request) == Accepted()
    await sink.close()
    assert out.getvalue().count('"trace_state"') == len(spans_in(request))


class Stubborn(InMemorySpanExporter):
    """Fails as it is told to, and holds one span for poison."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception | SpanExportResult] = []
        self.poison = ""
        self.threads: set[str] = set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.threads.add(threading.current_thread().name)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if self.poison in [span.name for span in spans]:
            return SpanExportResult.FAILURE
        return super().export(spans)


async def test_an_exporters_results_have_their_outcomes():
    exporter = Stubborn()
    exporter.failures = [SpanExportResult.FAILURE, OSError("no route")]
    sink = PluggedSink(exporter, "mine")
    request = all_of_otlp().SerializeToString()
    assert await sink.export(request) == Failed("mine returned FAILURE")
    assert await sink.export(request) == Failed("mine raised OSError: no route")
    assert await sink.export(request) == Accepted()
    assert [span.name for span in exporter.get_finished_spans()] == ["all"]
    assert exporter.threads == {"span-exporter"}
    await sink.close()
    assert exporter.export([]) is SpanExportResult.FAILURE  # shut down


async def test_all_of_a_journal_arrives_through_failures():
    journal, exporter = journal_of_two(), Stubborn()
    exporter.failures = [SpanExportResult.FAILURE, ValueError("x"), SpanExportResult.FAILURE]
    exporter.poison = "whence.v1.GenerationService/Generate"  # the SERVER spans

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    sink = PluggedSink(exporter, "mine")
    spans = JournalExport(journal, sink, max_batch_spans=8, patience=4, sleep=sleep)
    spans.start()
    assert await spans.flush(60)
    await spans.close()
    expected = [span.span_id for span in spans_in(await whence_request()) if span.kind != 2]
    arrived = [span.context.span_id.to_bytes(8) for span in exporter.get_finished_spans()]
    assert list(dict.fromkeys(arrived)) == expected
    assert spans.stats.num_set_aside == 2


async def test_an_exporter_that_hangs_does_not_keep_the_server(monkeypatch):
    monkeypatch.setattr("whence_server.telemetry.export.plugged._CLOSE_S", 0.05)
    let_go = threading.Event()

    class Hanging(Stubborn):
        def shutdown(self) -> None:
            let_go.wait()

    await PluggedSink(Hanging(), "mine").close()
    let_go.set()


def test_an_installed_exporter_is_found_by_its_name():
    assert isinstance(load_exporter("console"), ConsoleSpanExporter)


def test_a_callable_is_found_by_its_path():
    path = f"{InMemorySpanExporter.__module__}:InMemorySpanExporter"
    assert isinstance(load_exporter(path), SpanExporter)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jaeger", "is not installed; choose console"),
        ("no.such.module:Thing", "ModuleNotFoundError"),
        ("json:Thing", "AttributeError"),
        ("json:dumps", "TypeError"),
        ("builtins:list", "made list; expected an opentelemetry"),
    ],
)
def test_an_invalid_exporter_is_an_error_that_names_it(name, words):
    with pytest.raises(ConfigurationError, match=f"(?s){name!r}.*{words}"):
        load_exporter(name)
