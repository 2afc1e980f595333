"""Resource of the service and scope of whence, which every export request carries."""

from collections.abc import Mapping
from typing import cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.sdk.resources import Resource

from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.otlp.scope import SCOPE
from whence_server.telemetry.otlp.wire import encode_head


def make_service_resource(
    version: str,
    attributes: Mapping[str, AttributeValue] = {},
    configured: Mapping[str, str] = {},
) -> Resource:
    """Make the service's resource; its name is "whence" unless an attribute says otherwise.

    Args:
        version: version of whence.
        attributes: further attributes.
        configured: attributes that the operator sets (`config.telemetry.read_resource`), which
            take precedence.
    """
    own: dict[str, AttributeValue] = {
        "service.name": "whence",
        "service.version": version,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "whence",
        "telemetry.sdk.version": version,
        **attributes,
        **configured,
    }
    return Resource(own)


class Envelope:
    """Builder of ExportTraceServiceRequests from encoded spans, which it does not decode.

    Each span is a ScopeSpans message with one span. The concatenation of these messages is the
    serialisation of one ScopeSpans message with all spans.
    """

    def __init__(self, resource: Resource, version: str) -> None:
        attributes = cast("Mapping[str, AttributeValue]", resource.attributes)
        message = ResourceMessage(attributes=encode_attributes(dict(sorted(attributes.items()))))
        self._resource = ResourceSpans(resource=message).SerializeToString()
        scope = InstrumentationScope(name=SCOPE, version=version)
        self._scope = ScopeSpans(scope=scope).SerializeToString()

    def make_request(self, spans: list[bytes]) -> bytes:
        """Serialise a request with these spans."""
        # Lengths are computed first, so that the spans' bytes are copied once.
        num_bytes = len(self._scope) + sum(map(len, spans))
        resource_spans = self._resource + encode_head(
            ResourceSpans.SCOPE_SPANS_FIELD_NUMBER, num_bytes
        )
        num_bytes += len(resource_spans)
        request = encode_head(ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER, num_bytes)
        return b"".join((request, resource_spans, self._scope, *spans))
