"""Audit records as protobuf bytes, which the journal stores."""

from whence.v1 import audit_pb2
from whence_server.domain.audit import AuditEntry, AuditFilter
from whence_server.journal.codec import make_timestamp


def encode_audit(entry: AuditEntry) -> bytes:
    """Return a serialised whence.v1.AuditRecord."""
    deed = entry.deed
    proto = audit_pb2.AuditRecord(
        time=make_timestamp(deed.time_ns),
        num_calls=entry.num_calls,
        action=audit_pb2.AuditAction.ValueType(deed.action.value),
        method=deed.method,
        caller_id=deed.caller_id,
        address=deed.address,
        generation_id=deed.generation_id,
        detail=deed.detail,
        reason=deed.reason,
        status_code=deed.status_code,
        trace_id=deed.trace_id,
        span_id=deed.span_id,
        is_summary=entry.is_summary,
    )
    if entry.num_calls > 1:
        proto.last_time.CopyFrom(make_timestamp(entry.last_time_ns))
    return proto.SerializeToString()


def matches(record: audit_pb2.AuditRecord, wanted: AuditFilter) -> bool:
    """Return whether a record meets a filter's conditions."""
    time_ns = record.time.ToNanoseconds()
    return (
        (wanted.start_after_ns is None or time_ns > wanted.start_after_ns)
        and (wanted.start_before_ns is None or time_ns < wanted.start_before_ns)
        and wanted.caller_id in ("", record.caller_id)
        and wanted.generation_id in ("", record.generation_id)
        and (not wanted.actions or record.action in wanted.actions)
    )
