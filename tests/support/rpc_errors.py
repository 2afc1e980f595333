"""Parsing of failed calls: status, reason, fields at fault."""

from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True)
class Failure:
    """A failed call."""

    code: grpc.StatusCode
    message: str
    reason: str
    fields: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)


def failure_of(error: grpc.RpcError) -> Failure:
    """Parse the parts of an error that clients see."""
    reason, fields, metadata = "", {}, {}
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                fields = {v.field: v.description for v in bad.field_violations}
    return Failure(error.code(), error.details(), reason, fields, metadata)
