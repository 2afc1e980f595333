"""Malformed text in OpenTelemetry's variables is an error with variable and position."""

import base64
from urllib.parse import quote

import grpc
import pytest
from config_parts import ENDPOINT, HTTP, destination, otlp
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import OTELResourceDetector

from whence_server.config.otlp import find_unused_variables, read_otlp_settings
from whence_server.config.telemetry import read_push_options, read_resource
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings
from whence_server.domain.otlp_text import parse_resource_attributes
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.export.outcomes import Accepted
from whence_server.telemetry.metrics.otlp import make_otlp_exporter
from whence_server.training.export import start as training_telemetry

LATIN_1 = b"caf\xe9".decode(errors="surrogateescape")
EVERY_VARIABLE = [
    *("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"),
    *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_HEADERS", "OTEL_TRACES_EXPORTER"),
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_BSP_SOMETHING"),
]


@pytest.mark.parametrize("name", EVERY_VARIABLE)
def test_bytes_that_are_not_utf_8_are_an_error_with_the_variables_name(name: str) -> None:
    for read in (
        lambda: destination(**{name: LATIN_1}),
        lambda: read_otlp_settings({name: LATIN_1}, "metrics"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            read()
        assert str(caught.value) == f"{name}: byte 4 (0xE9) is not UTF-8; expected UTF-8"


def test_settings_that_are_text_must_be_utf_8() -> None:
    with pytest.raises(ConfigurationError, match="WHENCE_MODEL_NAME: byte 4"):
        destination(WHENCE_MODEL_NAME=LATIN_1)
    with pytest.raises(ConfigurationError, match="--model-name: byte 4"):
        destination("--model-name", LATIN_1)
    with pytest.raises(ConfigurationError, match=r"--model-name \(default: the name of --model\)"):
        destination("--model", LATIN_1)
    assert destination("--model", LATIN_1, "--model-name", "café") is None
    assert destination("--data-dir", LATIN_1) is None, "a path may be any bytes"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=1,b", "attribute 2 is not KEY=VALUE; expected KEY=VALUE,KEY=VALUE"),
        ("=1", "attribute 1 is not KEY=VALUE"),
        ("a=1, a=2", "attribute 2 (a) is given twice"),
        ("a=100%", "attribute 1 (a) has a % without two hex digits"),
        ("a=%zz", "attribute 1 (a) has a % without two hex digits"),
        ("a=%e9", "attribute 1 (a) is not UTF-8 after percent-decoding"),
        ("a=%00", "attribute 1 (a) holds a control character"),
        ("a=x\ny", "attribute 1 (a) holds a control character"),
        ("%ff=1", "attribute 1 is not UTF-8"),
    ],
)
def test_malformed_resource_attributes_are_an_error(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_resource({"OTEL_RESOURCE_ATTRIBUTES": text})
    assert words in str(caught.value)
    assert str(caught.value).startswith("OTEL_RESOURCE_ATTRIBUTES: ")
    with pytest.raises(ConfigurationError, match="OTEL_RESOURCE_ATTRIBUTES: "):
        destination(OTEL_RESOURCE_ATTRIBUTES=text)
    with pytest.raises(ConfigurationError, match="OTEL_RESOURCE_ATTRIBUTES: "):
        training_telemetry.is_wanted({"OTEL_RESOURCE_ATTRIBUTES": text})


@given(st.dictionaries(st.text("abcé", min_size=1), st.text("xyz é%=,/")))
def test_resource_attributes_are_read_as_the_sdk_reads_them(attributes: dict[str, str]) -> None:
    keys = {key: value.strip() for key, value in attributes.items()}
    text = ",".join(f"{key}={quote(value)}" for key, value in keys.items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", text)
        patch.delenv("OTEL_SERVICE_NAME", raising=False)
        sdk = dict(OTELResourceDetector().detect().attributes)
    assert parse_resource_attributes(text) == sdk == keys


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x-token-bin=not base64!", "header 1 (x-token-bin): over gRPC, the value of a name"),
        ("x-token-bin=abcde", "header 1 (x-token-bin): over gRPC"),
        ("a=1,A=2", "header 2 (a) is given twice; give it once"),
        ("grpc-timeout=1S", "header 1 (grpc-timeout) is set by the transport"),
        ("Content-Type=text/plain", "header 1 (content-type) is set by the transport"),
        ("te=gzip", "header 1 (te) is set by the transport"),
        ("user-agent=me", "header 1 (user-agent) is set by the transport"),
        ("x!y=1", "header 1 (x!y): gRPC allows only letters"),
        ("x=a%09b", "header 1 (x): its value has characters"),
        ("x=%C3%A9", "header 1 (x): its value has characters"),
        ("x=é", "header 1 (x): its value has characters"),
        ("é=x", "header 1 is not NAME=VALUE"),
        ("x=50%", "header 1 (x) has a % without two hex digits"),
        ("x=%e9", "header 1 (x) is not UTF-8"),
        (":path=/x", "header 1 is not NAME=VALUE"),
    ],
)
def test_headers_that_grpc_would_not_send_are_an_error(text: str, words: str) -> None:
    for environment in (ENDPOINT, {}):
        with pytest.raises(ConfigurationError) as caught:
            destination(**environment, OTEL_EXPORTER_OTLP_HEADERS=text)
        assert str(caught.value).startswith(f"OTEL_EXPORTER_OTLP_HEADERS: {words}")


@pytest.mark.parametrize("name", ["content-encoding", "Transfer-Encoding", "connection", "upgrade"])
def test_headers_that_http_needs_for_itself_are_an_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is set by the transport"):
        destination(**HTTP, **ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS=f"{name}=x")


def test_http_allows_more_header_names_than_grpc() -> None:
    text = "x-token-bin=any text,x!y=1,user-agent=me"
    headers = otlp(**HTTP, **ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS=text).headers
    assert headers == {"x-token-bin": "any text", "x!y": "1", "user-agent": "me"}


@pytest.mark.parametrize("padded", [True, False])
async def test_binary_header_arrives_decoded(padded: bool) -> None:
    """Check the exporters of spans and of metrics; logs use that of spans."""
    token, seen = bytes(range(256)) + b"\xff", []

    async def export(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        seen.append(dict(context.invocation_metadata())["x-token-bin"])
        return b""

    class Everything(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(export)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Everything()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    text = base64.b64encode(token).decode().rstrip("=" if not padded else "")
    settings = otlp(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_EXPORTER_OTLP_HEADERS=f"x-token-bin={text}",
    )
    assert isinstance(settings, OtlpSettings)
    sink = OtlpGrpcSink(settings)
    assert await sink.export(b"") == Accepted()
    await sink.close()
    assert seen == [token]
    exporter = make_otlp_exporter(settings, {})
    assert ("x-token-bin", token) in exporter._headers
    exporter.shutdown()
    await server.stop(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such.pem"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "yes"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x"),
    ],
)
def test_malformed_variable_is_an_error_even_without_export(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}"):
        destination(**{name: value})
    with pytest.raises(ConfigurationError, match=f"{name}"):
        read_otlp_settings({name: value}, "logs")


def test_malformed_metrics_variable_is_an_error_even_without_export() -> None:
    assert read_push_options(None, {}) is None
    for value in ("0", "9" * 5_000, "1e3", "²"):
        with pytest.raises(ConfigurationError, match="OTEL_METRIC_EXPORT_INTERVAL"):
            read_push_options(None, {"OTEL_METRIC_EXPORT_INTERVAL": value})


def test_unused_variables_are_listed() -> None:
    environment = {
        **ENDPOINT,
        "OTEL_BSP_SCHEDULE_DELAY": "1",
        "OTEL_PROPAGATORS": "b3",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=b",
        "OTEL_TRACES_SAMPLER_ARG": "1",
        "HOME": "/",
    }
    assert find_unused_variables(environment) == ["OTEL_BSP_SCHEDULE_DELAY", "OTEL_PROPAGATORS"]
