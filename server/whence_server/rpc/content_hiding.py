"""Messages for callers that may read numbers, and neither text nor token ids."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whence_server.domain.entries import Entry
from whence_server.rpc.splice import MESSAGES

_SHOWN_NAMES = {
    "GenerationSummary": "generation_id trace_id model labels damage",
    "GenerationStarted": "generation_id trace_id span_id parent_span_id trace_state model "
    "model_digest tokenizer_digest processor_names labels source_method unavailable operation "
    "constraint_engine owner",
    "Environment": "whence_version torch_version transformers_version dtype device "
    "attention_implementation weights_digest step_kernels",
    "TrainingRunRef": "training_run_id trace_id span_id record_head",
    "AppliedAdapter": "name peft_type digest base base_model_digest weights_digest",
    "ChatRecord": "template_name tool_call_format reasoning_format",
    "Failure": "reason",
    "Caller": "method trace_id span_id parent_span_id address identity",
    "EngineEnded": "detail",
    "UpstreamInfo": "kind version model claimed_files",
    "UpstreamReport": "model fingerprint",
    "RecordedElsewhere": "library",
    "ListGenerationsResponse": "next_page_token",
    "ListStepsResponse": "next_page_token",
    "WatchGenerationsResponse": "generation_id position",
}
_SHOWN = frozenset(
    f"whence.v1.{message}.{name}"
    for message, names in _SHOWN_NAMES.items()
    for name in names.split()
)
"""Texts that are no content; a text that is not listed is hidden, so that a new one is, too."""
_HIDDEN = frozenset({"whence.v1.Step.candidates", "whence.v1.Step.requested_logprobs"})
"""Messages that are hidden whole: clients read their arrays beside those of the token ids."""
_TIMES = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
"""Messages of others that hold no text; every other one is hidden, as `Struct` is."""


def is_content(field: FieldDescriptor) -> bool:
    """Return whether a field holds text or token ids of a prompt or an output."""
    if field.full_name in _SHOWN:
        return False
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    is_text = field.type in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}
    is_token = "token_id" in field.name and field.message_type is None
    return is_map or is_text or is_token or _is_foreign(field) or field.full_name in _HIDDEN


def _is_foreign(field: FieldDescriptor) -> bool:
    """Return whether a field's message has fields that nobody looks into here."""
    kind = field.message_type
    return (
        kind is not None
        and not kind.full_name.startswith("whence.")
        and (kind.full_name not in _TIMES)
    )


def hide_content(message: Message) -> None:
    """Clear every field of a message, and of those within it, that holds content."""
    # Fields of a later version may hold content too.
    message.DiscardUnknownFields()
    hidden, nested = _list_fields(message.DESCRIPTOR)
    for name in hidden:
        message.ClearField(name)
    for field, value in message.ListFields():
        if field.name not in nested:
            continue
        for one in value if field.is_repeated else (value,):
            hide_content(one)


def hide_entry(entry: Entry) -> Entry:
    """Return an entry of a generation without content."""
    message = MESSAGES[entry.kind].FromString(entry.payload)
    hide_content(message)
    return entry._replace(payload=message.SerializeToString())


_fields: dict[str, tuple[list[str], frozenset[str]]] = {}


def _list_fields(descriptor: Any) -> tuple[list[str], frozenset[str]]:
    """Return the names of the fields to clear, and of those with messages to look into."""
    found = _fields.get(descriptor.full_name)
    if found is None:
        hidden = [field.name for field in descriptor.fields if is_content(field)]
        nested = frozenset(
            field.name
            for field in descriptor.fields
            if field.message_type is not None
            and not field.message_type.GetOptions().map_entry
            and field.message_type.full_name.startswith("whence.")
        )
        found = _fields[descriptor.full_name] = hidden, nested
    return found
