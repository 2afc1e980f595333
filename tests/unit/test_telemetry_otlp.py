"""OTLP's two protocols: what is sent, and what each answer means."""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate

import aiohttp
import grpc
import pytest
import trustme
from aiohttp import web
from faulty_collector import Answer, FaultyCollector, Partial, partial_success, spans_in
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpProtocol, OtlpSettings
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.export.otlp_http import OtlpHttpSink
from whence_server.telemetry.export.outcomes import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    Refused,
    SpanSink,
    TooLarge,
    TryAgain,
)

NOW = 1_800_000_000
REQUEST = ExportTraceServiceRequest(
    resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(name="one")])])]
).SerializeToString()
BOTH = pytest.mark.parametrize("protocol", list(OtlpProtocol))
PROTOBUF, JSON = "application/x-protobuf", "application/json"


def sink_of(settings: OtlpSettings) -> SpanSink:
    kind = OtlpGrpcSink if settings.protocol is OtlpProtocol.GRPC else OtlpHttpSink
    return kind(settings)


async def export(settings: OtlpSettings) -> Outcome:
    sink = sink_of(settings)
    try:
        return await sink.export(REQUEST)
    finally:
        await sink.close()


@BOTH
@pytest.mark.parametrize("gzip", [False, True])
async def test_the_request_arrives_with_its_headers(protocol, gzip):
    async with FaultyCollector(protocol).running() as collector:
        settings = collector.settings(headers={"api-key": "a b"}, gzip=gzip, timeout_s=None)
        assert await export(settings) == Accepted()
    assert collector.requests == [spans_in(REQUEST)]
    assert collector.headers["api-key"] == "a b"
    if protocol is OtlpProtocol.HTTP_PROTOBUF:
        assert collector.path == "/v1/traces"
        assert collector.headers["content-type"] == PROTOBUF
        assert collector.headers.get("content-encoding") == ("gzip" if gzip else None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.CANCELLED, TryAgain),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TryAgain),
        (grpc.StatusCode.ABORTED, TryAgain),
        (grpc.StatusCode.OUT_OF_RANGE, TryAgain),
        (grpc.StatusCode.UNAVAILABLE, TryAgain),
        (grpc.StatusCode.DATA_LOSS, TryAgain),
        (grpc.StatusCode.UNAUTHENTICATED, Misconfigured),
        (grpc.StatusCode.PERMISSION_DENIED, Misconfigured),
        (grpc.StatusCode.UNIMPLEMENTED, Misconfigured),
        (grpc.StatusCode.INTERNAL, Failed),
        (grpc.StatusCode.UNKNOWN, Failed),
        (grpc.StatusCode.INVALID_ARGUMENT, Refused),
        (grpc.StatusCode.NOT_FOUND, Refused),
        (grpc.StatusCode.ALREADY_EXISTS, Refused),
        (grpc.StatusCode.FAILED_PRECONDITION, Refused),
    ],
)
async def test_each_grpc_status_has_its_outcome(code, kind):
    async with FaultyCollector(OtlpProtocol.GRPC).running() as collector:
        collector.faults.append(Answer(code, 0))
        assert await export(collector.settings()) == kind(f"{code.name}: as told")


async def test_resource_exhausted_is_retried_only_with_a_delay():
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    async with FaultyCollector(OtlpProtocol.GRPC).running() as collector:
        collector.faults.extend([Answer(exhausted, 0), Answer(exhausted, 0, retry_delay_s=2.5)])
        reason = "RESOURCE_EXHAUSTED: as told"
        assert await export(collector.settings()) == TooLarge(reason, certain=False)
        assert await export(collector.settings()) == TryAgain(reason, 2.5)


async def test_a_message_beyond_grpcs_limit_is_too_large():
    """gRPC's own words, from a server of its own."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 1)])
    handler = grpc.unary_unary_rpc_method_handler(None)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    outcome = await export(OtlpSettings(endpoint=f"http://127.0.0.1:{port}"))
    await server.stop(None)
    assert isinstance(outcome, TooLarge)
    assert outcome.certain


@asynccontextmanager
async def answering(status: int, body: bytes, **headers: str):
    async def answer(_: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=named)

    app = web.Application()
    app.router.add_post("/v1/traces", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    sink = OtlpHttpSink(
        OtlpSettings(endpoint=endpoint, protocol=OtlpProtocol.HTTP_PROTOBUF), clock=lambda: NOW
    )
    try:
        yield sink
    finally:
        await sink.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, TryAgain),
        (502, TryAgain),
        (503, TryAgain),
        (504, TryAgain),
        (408, TryAgain),
        (413, TooLarge),
        (401, Misconfigured),
        (403, Misconfigured),
        (404, Misconfigured),
        (405, Misconfigured),
        (415, Misconfigured),
        (301, Misconfigured),
        (307, Misconfigured),
        (501, Misconfigured),
        (500, Failed),
        (505, Failed),
        (400, Refused),
        (409, Refused),
        (422, Refused),
    ],
)
async def test_each_http_status_has_its_outcome(status, kind):
    async with answering(status, b"no  thanks", location="/v1/traces") as sink:
        outcome = await sink.export(REQUEST)
    assert type(outcome) is kind
    assert outcome.reason.startswith(f"{status} ")
    assert outcome.reason.endswith(": no thanks")


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("-5", 0.0),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
async def test_retry_after_is_read_as_seconds_or_a_date(text, delay_s):
    async with answering(503, b"", retry_after=text) as sink:
        outcome = await sink.export(REQUEST)
    assert isinstance(outcome, TryAgain)
    assert outcome.delay_s == delay_s


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        (PROTOBUF, Status(message="bad span").SerializeToString(), "bad span"),
        (JSON, b'{"code": 3, "message": "bad span"}', "bad span"),
        (JSON, b'["bad"]', '["bad"]'),
        (JSON, b"[" * 50_000, "[" * 200),
        (PROTOBUF, b"bad span", "bad span"),
        ("text/html", b"x" * 1_000_000, "x" * 200),
    ],
)
async def test_an_http_errors_message_is_the_reason(content_type, body, message):
    async with answering(400, body, content_type=content_type) as sink:
        assert await sink.export(REQUEST) == Refused(f"400 Bad Request: {message}")


@pytest.mark.parametrize(
    ("status", "content_type", "body", "outcome"),
    [
        (200, PROTOBUF, b"", Accepted()),
        (202, PROTOBUF, b"", Accepted()),
        (204, PROTOBUF, b"", Accepted()),
        (200, PROTOBUF, partial_success(Partial(2)), Accepted(2, "too old")),
        (200, JSON, b"", Accepted()),
        (200, JSON, b"{}", Accepted()),
        (200, JSON, b'{"status": "ok", "partialSuccess": null}', Accepted()),
        (
            200,
            JSON,
            b'{"partialSuccess": {"rejectedSpans": "2", "errorMessage": "too old"}}',
            Accepted(2, "too old"),
        ),
    ],
)
async def test_a_successful_answer_is_accepted(status, content_type, body, outcome):
    async with answering(status, body, content_type=content_type) as sink:
        assert await sink.export(REQUEST) == outcome


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON, "text/html"])
async def test_an_html_page_is_a_failure(content_type):
    async with answering(200, b"<html>Log in</html>", content_type=content_type) as sink:
        outcome = await sink.export(REQUEST)
    assert isinstance(outcome, Failed)
    assert "<html>Log in</html>" in outcome.reason
    assert "/v1/traces" in outcome.reason


async def test_an_empty_html_page_is_a_failure():
    async with answering(200, b"", content_type="text/html") as sink:
        assert isinstance(await sink.export(REQUEST), Failed)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b"[]"),
        (JSON, b'"ok"'),
        (JSON, b"0"),
        (JSON, b"null"),
        (JSON, b"[" * 50_000),
        (JSON, b'{"partialSuccess": "ok"}'),
        (JSON, b'{"partialSuccess": []}'),
        # Two letters that pass for a message with a field that nobody knows.
        ("text/plain", b"Hi"),
        ("application/octet-stream", b"00"),
        (PROTOBUF, partial_success(Partial(2))[:-1]),
    ],
)
async def test_another_programs_answer_is_no_success(content_type, body):
    async with answering(200, body, content_type=content_type) as sink:
        outcome = await sink.export(REQUEST)
    assert isinstance(outcome, Failed)
    assert "no OTLP answer" in outcome.reason


async def test_a_change_of_protocols_is_no_success():
    async def switch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(switch, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        settings = OtlpSettings(endpoint=f"http://127.0.0.1:{port}/v1/traces")
        sink = OtlpHttpSink(settings)
        try:
            assert isinstance(await sink.export(REQUEST), Misconfigured)
        finally:
            await sink.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path) -> Iterator[dict[str, object]]:
    """The client's side: whom to trust, and who we are."""
    paths = {name: tmp_path / f"{name}.pem" for name in ("ca", "key", "certificate")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    client = authority.issue_cert("client@example.org")
    client.private_key_pem.write_to_path(str(paths["key"]))
    client.cert_chain_pems[0].write_to_path(str(paths["certificate"]))
    return {
        "certificate": paths["ca"],
        "client_key": paths["key"],
        "client_certificate": paths["certificate"],
    }


@asynccontextmanager
async def collecting_over_tls(protocol: OtlpProtocol, authority: trustme.CA, *, mutual: bool):
    server = authority.issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.configure_cert(context)
    if mutual:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    credentials = grpc.ssl_server_credentials(
        [(server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes() if mutual else None,
        require_client_auth=mutual,
    )
    own = {"credentials": credentials} if protocol is OtlpProtocol.GRPC else {"tls": context}
    async with FaultyCollector(protocol).running(**own) as collector:
        yield collector


@BOTH
async def test_export_over_tls_trusts_only_the_given_authority(protocol, authority, files):
    async with collecting_over_tls(protocol, authority, mutual=False) as collector:
        trusting = collector.settings(certificate=files["certificate"])
        assert await export(trusting) == Accepted()
        assert isinstance(await export(replace(trusting, certificate=None)), TryAgain)
    assert len(collector.requests) == 1


@BOTH
async def test_tls_that_asks_for_a_certificate(protocol, authority, files):
    async with collecting_over_tls(protocol, authority, mutual=True) as collector:
        assert await export(collector.settings(**files)) == Accepted()
        without = collector.settings(certificate=files["certificate"])
        assert isinstance(await export(without), TryAgain)
    assert len(collector.requests) == 1


@BOTH
@pytest.mark.parametrize("field", ["certificate", "client_certificate"])
async def test_an_invalid_certificate_file_is_an_error_that_names_it(
    protocol, field, files, tmp_path
):
    (tmp_path / "wrong.pem").write_text("nothing")
    wrong = {**files, field: tmp_path / "wrong.pem"}
    with pytest.raises(ConfigurationError, match=r"wrong\.pem holds no"):
        sink_of(OtlpSettings(endpoint="https://localhost:1", protocol=protocol, **wrong))


@BOTH
async def test_an_invalid_endpoint_is_an_error_that_names_it(protocol):
    with pytest.raises(ConfigurationError, match="'ftp://x'"):
        sink_of(OtlpSettings(endpoint="ftp://x", protocol=protocol))


async def test_connection_errors_are_outcomes_and_not_exceptions():
    sink = sink_of(
        OtlpSettings(endpoint="http://127.0.0.1:1/x", protocol=OtlpProtocol.HTTP_PROTOBUF)
    )
    outcome = await sink.export(REQUEST)
    await sink.close()
    assert isinstance(outcome, TryAgain)
    assert aiohttp.ClientConnectorError.__name__ in outcome.reason
