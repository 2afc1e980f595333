"""OpenTelemetry's variables are read as specified, and malformed ones are errors."""

import os
from pathlib import Path

import pytest
from config_parts import ENDPOINT, HTTP, destination, otlp

from whence_server.config import read_otlp_settings
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpProtocol, OtlpSettings, Signal, parse_grpc_target


def test_without_variables_there_is_no_export() -> None:
    assert destination() is None
    assert destination(OTEL_EXPORTER_OTLP_HEADERS="a=b") is None
    assert destination(OTEL_EXPORTER_OTLP_ENDPOINT="", OTEL_TRACES_EXPORTER="") is None


def test_endpoint_alone_enables_export() -> None:
    assert otlp("--otlp-endpoint", "http://a:1") == OtlpSettings(endpoint="http://a:1")
    assert otlp(OTEL_EXPORTER_OTLP_ENDPOINT=" http://a:1 ").endpoint == "http://a:1"


def test_flags_precede_signal_variables_and_those_precede_general_ones() -> None:
    both = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:4317",
    }
    assert otlp(**both).endpoint == "http://b:4317"
    assert otlp(**both | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ""}).endpoint == "http://a:4317"
    assert otlp(**both, WHENCE_OTLP_ENDPOINT="http://c:1").endpoint == "http://c:1"
    assert otlp("--otlp-endpoint", "http://d:1", **both).endpoint == "http://d:1"
    protocols = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    assert otlp(**both, **protocols).protocol is OtlpProtocol.HTTP_PROTOBUF
    assert otlp("--otlp-protocol", "grpc", **both, **protocols).protocol is OtlpProtocol.GRPC


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://a:4318", "http://a:4318/v1/traces"),
        ("http://a:4318/", "http://a:4318/v1/traces"),
        ("https://a/otlp", "https://a/otlp/v1/traces"),
        ("https://a/otlp/", "https://a/otlp/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ],
)
def test_http_appends_the_path_to_the_general_endpoint(base: str, url: str) -> None:
    assert otlp(**HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=base).endpoint == url
    assert otlp("--otlp-protocol", "http/protobuf", "--otlp-endpoint", base).endpoint == url


@pytest.mark.parametrize("url", ["http://a:4318", "https://a/x/y?key=1", "http://a/v1/traces"])
def test_http_does_not_change_the_signals_own_endpoint(url: str) -> None:
    assert otlp(**HTTP, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=url).endpoint == url


def test_exporter_otlp_without_an_endpoint_uses_the_default_one() -> None:
    assert otlp(OTEL_TRACES_EXPORTER="otlp").endpoint == "http://localhost:4317"
    assert otlp("--span-exporter", "otlp").endpoint == "http://localhost:4317"
    assert otlp(OTEL_TRACES_EXPORTER="otlp", **HTTP).endpoint == "http://localhost:4318/v1/traces"


@pytest.mark.parametrize(
    "off",
    [
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_SDK_DISABLED": "True", "OTEL_TRACES_EXPORTER": "console"},
        {"WHENCE_SPAN_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_disabling_variables_disable_export(off: dict[str, str]) -> None:
    assert destination("--otlp-endpoint", "http://a:1", **off) is None
    assert destination("--otlp-protocol", "grpc", **off) is None


def test_other_exporter_is_returned_by_name() -> None:
    assert destination(OTEL_TRACES_EXPORTER="console") == "console"
    assert destination("--span-exporter", "my.pkg:Exporter") == "my.pkg:Exporter"
    both = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_TRACES_EXPORTER": "console"}
    assert destination(**both) == "console"
    assert isinstance(destination("--span-exporter", "otlp", **both), OtlpSettings)


def test_all_other_variables_are_read(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.write_text("")
    settings = otlp(
        OTEL_EXPORTER_OTLP_ENDPOINT="https://a",
        OTEL_EXPORTER_OTLP_HEADERS="x=all",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="Api-Key=a%20b%3D=,, tenant = 7 ,empty=",
        OTEL_EXPORTER_OTLP_TIMEOUT="2500",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_EXPORTER_OTLP_CERTIFICATE=str(pem),
        OTEL_EXPORTER_OTLP_CLIENT_KEY=str(pem),
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=str(pem),
        OTEL_EXPORTER_OTLP_INSECURE="TRUE",
    )
    assert settings == OtlpSettings(
        endpoint="https://a",
        headers={"api-key": "a b==", "tenant": "7", "empty": ""},
        timeout_s=2.5,
        gzip=True,
        certificate=pem,
        client_key=pem,
        client_certificate=pem,
        insecure=True,
    )
    assert "a b" not in repr(settings)
    endless = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://a"}
    assert otlp(**endless).timeout_s is None


def test_metrics_variables_are_independent_of_traces() -> None:
    environment = {
        **HTTP,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1000",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2000",
        "OTEL_METRICS_EXPORTER": "otlp",
    }
    metrics = read_otlp_settings(environment, "metrics")
    assert metrics is not None
    assert (metrics.endpoint, metrics.timeout_s) == ("http://a:4318/v1/metrics", 1.0)
    assert read_otlp_settings(environment | {"OTEL_METRICS_EXPORTER": "none"}, "metrics") is None
    assert read_otlp_settings({}, "metrics") is None
    assert read_otlp_settings({}, "metrics", endpoint="http://b:1") is not None


@pytest.mark.parametrize("signal", ["metrics", "logs"])
@pytest.mark.parametrize(
    ("names", "advice"),
    [
        ("prometheus", "; for Prometheus to scrape a page, give --metrics-listen"),
        ("otlp,prometheus", "; for Prometheus to scrape a page, give --metrics-listen"),
        ("console", ""),
    ],
)
def test_other_exporters_of_metrics_and_logs_are_refused(
    signal: Signal, names: str, advice: str
) -> None:
    variable, name = f"OTEL_{signal.upper()}_EXPORTER", names.rpartition(",")[2]
    with pytest.raises(ConfigurationError) as caught:
        read_otlp_settings(ENDPOINT | {variable: names}, signal)
    assert str(caught.value) == f"{variable} '{name}': expected otlp or none{advice}"


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (("--otlp-endpoint", "ftp://x:1"), {}, "--otlp-endpoint 'ftp://x:1': its scheme is 'ftp'"),
        (("--otlp-endpoint", "http://x:1/path"), {}, "it has a path, query or fragment"),
        (("--otlp-endpoint", "x:port"), {}, "--otlp-endpoint 'x:port': Port could not be cast"),
        (("--otlp-endpoint", "http://:4317"), {}, "it has no host"),
        (("--otlp-endpoint", "http://["), {}, "Invalid IPv6 URL"),
        (("--otlp-endpoint", "http://u:secret@x:1"), {}, "'http://***@x:1': it has a user name"),
        (("--otlp-protocol", "http/json"), {}, "expected one of grpc, http/protobuf"),
        (("--otlp-endpoint", "a:1"), HTTP, "it has no scheme; give http://"),
        (
            ("--otlp-endpoint", "http://a/v1/traces"),
            HTTP,
            "it ends in /v1/traces, which is appended",
        ),
        (("--otlp-endpoint", "http://a/?k=v"), HTTP, "it has a query"),
        (
            (),
            HTTP | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "unix:/a"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT 'unix:/a': it has no scheme",
        ),
        (("--span-exporter", "not a name"), {}, "--span-exporter 'not a name': expected otlp"),
        ((), {"OTEL_TRACES_EXPORTER": "a b"}, "OTEL_TRACES_EXPORTER 'a b': expected otlp"),
        ((), {"OTEL_TRACES_EXPORTER": "otlp,console"}, "expected one exporter"),
        ((), {"OTEL_TRACES_EXPORTER": "none,console"}, "none excludes other exporters"),
        (
            ("--otlp-endpoint", "http://a:1"),
            {"OTEL_TRACES_EXPORTER": "console"},
            "the exporter 'console' has its own",
        ),
        (
            ("--otlp-protocol", "grpc"),
            {"OTEL_TRACES_EXPORTER": "console"},
            "--otlp-protocol 'grpc': the exporter 'console' has its own",
        ),
        (("--otlp-protocol", "grpc"), {}, "--otlp-protocol 'grpc': spans go nowhere; give"),
        ((), {"OTEL_SDK_DISABLED": "1"}, "OTEL_SDK_DISABLED '1': expected true or false"),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL 'http/json': expected one of grpc, http/protobuf",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "10s"},
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT '10s': expected whole milliseconds",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
            "expected one of gzip, none",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE '/no/such.pem': cannot be read (No such file",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_CLIENT_KEY": __file__},
            "OTEL_EXPORTER_OTLP_CLIENT_KEY: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE must",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "a=1,secret"},
            "OTEL_EXPORTER_OTLP_HEADERS: header 2 is not NAME=VALUE",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "a b=secret"},
            "OTEL_EXPORTER_OTLP_HEADERS: header 1 is not NAME=VALUE",
        ),
        (
            (),
            ENDPOINT | {"OTEL_EXPORTER_OTLP_HEADERS": "a=secret%0d%0ab:c"},
            "header 1 (a): its value has characters",
        ),
    ],
)
def test_malformed_setting_is_an_error_with_source_and_expected_form(
    flags: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        destination(*flags, **environment)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "insecure", "target", "secure"),
    [
        ("http://collector:4317", False, "collector:4317", False),
        ("http://collector", False, "collector:4317", False),
        ("https://collector.example/", True, "collector.example:4317", True),
        ("127.0.0.1:9999", True, "127.0.0.1:9999", False),
        ("127.0.0.1:9999", False, "127.0.0.1:9999", True),
        ("collector", True, "collector:4317", False),
        ("http://[::1]:4317", False, "[::1]:4317", False),
        ("unix:/run/otel.sock", False, "unix:/run/otel.sock", False),
    ],
)
def test_grpc_endpoints_become_targets_with_or_without_tls(
    endpoint: str, insecure: bool, target: str, secure: bool
) -> None:
    assert parse_grpc_target(endpoint, insecure=insecure) == (target, secure)


@pytest.mark.parametrize("endpoint", ["", "unix:", "ftp://x:1", "x:port", "http://:1", "http://["])
def test_malformed_grpc_targets_are_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="give http://HOST:PORT"):
        parse_grpc_target(endpoint)


def test_pipe_as_certificate_is_refused_without_blocking(tmp_path: Path) -> None:
    pipe = tmp_path / "ca.pem"
    os.mkfifo(pipe)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        destination(
            OTEL_EXPORTER_OTLP_ENDPOINT="http://a:1", OTEL_EXPORTER_OTLP_CERTIFICATE=str(pipe)
        )
