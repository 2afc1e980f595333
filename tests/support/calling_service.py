"""Another service that calls whence below a span of its own, in JavaScript where it is at hand."""

import shutil
import subprocess
from pathlib import Path

from backend_process import ENVIRONMENTS
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import whence

NAME = "shop"
"""The calling service's name."""
SPAN = "work"
"""The name of its span."""
NODE = ENVIRONMENTS / "node"
PROTO = Path(__file__).parents[2] / "proto"


def call_from_service(target: str, otlp: str) -> str:
    """Generate three tokens below a span of another service; return the trace's id.

    The service is grpc-js with OpenTelemetry's instrumentation if `make node` has installed it,
    else this process with whence's client.

    Args:
        target: the server's address.
        otlp: URL for the service's own spans over HTTP.
    """
    node = shutil.which("node")
    if node is None or not (NODE / ".ready").exists():
        return _call_from_python(target, otlp)
    done = subprocess.run(
        [node, str(NODE / "service.js"), target, otlp, str(PROTO)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _call_from_python(target: str, otlp: str) -> str:
    provider = TracerProvider(resource=Resource({"service.name": NAME}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(otlp)))
    with provider.get_tracer("program").start_as_current_span(SPAN) as span:
        with whence.Client(target) as client:
            client.generate("The quick", max_new_tokens=3).result()
    provider.shutdown()
    return trace.format_trace_id(span.get_span_context().trace_id)
