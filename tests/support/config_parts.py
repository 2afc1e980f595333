"""Settings from flags and an environment, for tests."""

import argparse

from whence_server.config import add_arguments, make_serve_config
from whence_server.domain.otlp import OtlpSettings

HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}


def destination(*flags: str, **environment: str) -> OtlpSettings | str | None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    arguments = parser.parse_args(["--model", "m", *flags])
    return make_serve_config(arguments, environment).span_destination


def otlp(*flags: str, **environment: str) -> OtlpSettings:
    found = destination(*flags, **environment)
    assert isinstance(found, OtlpSettings)
    return found
