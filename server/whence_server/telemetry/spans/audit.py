"""`whence.audit` events: an audit record as a log record."""

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO, LogRecord, ScopeLogs

from whence.v1.audit_pb2 import AuditAction, AuditRecord
from whence_server.domain.entries import Entry, EntryKind
from whence_server.telemetry.grpc_status import get_status_name
from whence_server.telemetry.journal import UnreadableEntryError
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import names

_PREFIX = "AUDIT_ACTION_"


class AuditEncoder:
    """Encoder of the journal's audit records as log events."""

    def expect(self, entries: Sequence[Entry]) -> None:
        """Ignore the entries that will be encoded next."""

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an audit record, as a ScopeLogs message that holds it alone.

        Raises:
            UnreadableEntryError: the payload is not an audit record.
        """
        if entry.kind is not EntryKind.AUDIT:
            return []
        try:
            record = make_audit_event(AuditRecord.FromString(entry.payload))
        except (DecodeError, ValueError) as error:
            raise UnreadableEntryError(
                f"entry {entry.position} ({entry.kind.name}) cannot be made into an event: {error}"
            ) from error
        return [ScopeLogs(log_records=[record]).SerializeToString()]

    def describe(self, piece: bytes) -> str:
        """Return an event's name and trace, from the ScopeLogs message that holds it alone."""
        record = ScopeLogs.FromString(piece).log_records[0]
        return f"event {record.event_name} of trace {record.trace_id.hex()}"


def make_audit_event(record: AuditRecord) -> LogRecord:
    """Make the log record of an audit record.

    Raises:
        ValueError: its ids are not hex.
    """
    time_ns = max(record.time.ToNanoseconds(), 0)
    return LogRecord(
        time_unix_nano=time_ns,
        observed_time_unix_nano=max(record.last_time.ToNanoseconds(), time_ns),
        severity_number=SEVERITY_NUMBER_INFO,
        event_name=names.AUDIT,
        attributes=encode_attributes(_make_attributes(record)),
        trace_id=bytes.fromhex(record.trace_id),
        span_id=bytes.fromhex(record.span_id),
    )


def get_action_name(action: int) -> str:
    """Return an action's name in events and commands, as "read_content"; its number if unknown."""
    found = AuditAction.DESCRIPTOR.values_by_number.get(action)
    return str(action) if found is None else found.name.removeprefix(_PREFIX).lower()


def _make_attributes(record: AuditRecord) -> dict[str, AttributeValue | None]:
    status = get_status_name(record.status_code) or str(record.status_code)
    return {
        names.AUDIT_ACTION: get_action_name(record.action),
        names.AUDIT_NUM_CALLS: record.num_calls,
        names.AUDIT_CALLER: record.caller_id or None,
        names.AUDIT_DETAIL: record.detail or None,
        names.AUDIT_REASON: record.reason or None,
        names.AUDIT_IS_SUMMARY: record.is_summary,
        names.GENERATION_ID: record.generation_id or None,
        names.RPC_METHOD: record.method or None,
        names.RPC_RESPONSE_STATUS_CODE: status,
        names.CLIENT_ADDRESS: record.address or None,
    }
