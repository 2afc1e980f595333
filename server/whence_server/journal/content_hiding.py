"""Removal of content from messages: for the record, and for readers without `read:content`.

One walk over the descriptors serves both. Texts are content unless a table here says that they are
none, so that a new field of the contract is hidden until somebody has thought about it.
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry
from whence_server.journal.entry_messages import MESSAGES


def _list_names(names: dict[str, str]) -> frozenset[str]:
    return frozenset(
        f"whence.v1.{message}.{name}" for message, of in names.items() for name in of.split()
    )


_SHOWN = _list_names(
    {
        "GenerationSummary": "generation_id trace_id model labels damage parent_generation_id",
        "GenerationStarted": "generation_id trace_id span_id parent_span_id trace_state model "
        "model_digest tokenizer_digest processor_names labels source_method unavailable operation "
        "constraint_engine owner",
        "Environment": "whence_version torch_version transformers_version dtype device "
        "attention_implementation weights_digest step_kernels",
        "TrainingRunRef": "training_run_id trace_id span_id record_head",
        "AppliedAdapter": "name peft_type digest base base_model_digest weights_digest",
        "ChatRecord": "template_name tool_call_format reasoning_format template_digest",
        "Failure": "reason",
        "Caller": "method trace_id span_id parent_span_id address identity",
        "EngineEnded": "detail",
        "UpstreamInfo": "kind version model claimed_files weights_difference",
        "SignedStatement": "envelope",
        "UpstreamReport": "model fingerprint",
        "RecordedElsewhere": "library",
        "Fork": "parent_generation_id changed_settings parent_trace_id parent_span_id",
        "Redaction": "kind field",
        "Explanation": "parameters weights_digest unrecorded_reason",
        "ListGenerationsResponse": "next_page_token",
        "ListStepsResponse": "next_page_token",
        "WatchGenerationsResponse": "generation_id position",
    }
)
"""Texts that are no content; a text that is not listed is hidden, so that a new one is, too."""
_RECORDED = _list_names(
    {
        "GenerationStarted": "request_digest unrecorded_reason",
        "UpstreamInfo": "url",
    }
)
"""Texts that are no content and that the record keeps, but readers with `read` alone do not see."""
_TELLING = _list_names(
    {
        # Clients read their arrays beside those of the token ids.
        "Step": "candidates requested_logprobs text_begin_byte text_end_byte",
        # Lengths of the answer's parts.
        "ParsedToolCall": "text_begin_byte text_end_byte",
        "ParsedReasoning": "text_begin_byte text_end_byte",
        # The seed and the noise of a draw tell its token; lengths of tokens tell of words.
        "Draw": "noise",
        # Ids are its keys.
        "Decoding": "logit_bias",
        # Lengths of what was redacted.
        "Redaction": "begin_byte end_byte num_bytes",
    }
)
"""Numbers, and messages of numbers, that tell token ids or are read beside them."""
_TIMES = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
"""Messages of others that hold no text; every other one is hidden, as `Struct` is."""
_TEXT_TYPES = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})


class Hiding:
    """Remover of the fields of messages that hold content.

    Args:
        keeps_ids: True keeps token ids.
        shown: full names of the texts that are kept.
    """

    def __init__(self, *, keeps_ids: bool, shown: frozenset[str]) -> None:
        self._keeps_ids = keeps_ids
        self._shown = shown
        self._fields: dict[str, tuple[list[tuple[str, bool]], frozenset[str]]] = {}

    def is_content(self, field: FieldDescriptor) -> bool:
        """Return whether a field is removed: it holds text, or token ids, of prompt or output."""
        if field.full_name in self._shown:
            return False
        if _is_text(field):
            return True
        return not self._keeps_ids and (_is_token(field) or field.full_name in _TELLING)

    def hide(self, message: Message) -> None:
        """Empty every field of a message, and of those within it, that holds content."""
        # Fields of a later version may hold content too.
        message.DiscardUnknownFields()
        hidden, nested = self._list_fields(message.DESCRIPTOR)
        for name, is_kind in hidden:
            if not is_kind:
                message.ClearField(name)
            elif message.HasField(name):
                setattr(message, name, "")
        for field, value in message.ListFields():
            if field.name not in nested:
                continue
            for one in value if field.is_repeated else (value,):
                self.hide(one)

    def hide_entry(self, entry: Entry) -> Entry:
        """Return an entry of a generation without content."""
        message = MESSAGES[entry.kind].FromString(entry.payload)
        self.hide(message)
        return entry._replace(payload=message.SerializeToString())

    def _list_fields(self, descriptor: Any) -> tuple[list[tuple[str, bool]], frozenset[str]]:
        """Return the names of the fields to clear, and of those with messages to look into.

        A text that is one of several kinds, as a regular expression is of constraints, stays as an
        empty text: which kind it was is no content.
        """
        found = self._fields.get(descriptor.full_name)
        if found is None:
            hidden = [
                (field.name, _is_kind(field))
                for field in descriptor.fields
                if self.is_content(field)
            ]
            nested = frozenset(
                field.name
                for field in descriptor.fields
                if field.message_type is not None
                and not _is_map(field)
                and field.message_type.full_name.startswith("whence.")
            )
            found = self._fields[descriptor.full_name] = hidden, nested
        return found


def _is_kind(field: FieldDescriptor) -> bool:
    """Return whether a field is a text that is one member of a oneof."""
    oneof = field.containing_oneof
    # Protobuf puts an optional field into a oneof of its own, "_" and its name.
    is_optional = oneof is None or oneof.name == f"_{field.name}"
    return not is_optional and field.type == FieldDescriptor.TYPE_STRING


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_text(field: FieldDescriptor) -> bool:
    """Return whether a field holds text, or messages that nobody looks into here."""
    kind = field.message_type
    if kind is None:
        return field.type in _TEXT_TYPES
    if _is_map(field):
        return any(_is_text(part) for part in kind.fields)
    return not kind.full_name.startswith("whence.") and kind.full_name not in _TIMES


def _is_token(field: FieldDescriptor) -> bool:
    """Return whether a field holds token ids; a grade of them is an enum."""
    return "token_id" in field.name and field.message_type is None and field.enum_type is None


READER = Hiding(keeps_ids=False, shown=_SHOWN)
"""Hides content from a reader of the record with the scope `read` alone."""
RECORD = {
    ContentPolicy.TOKENS: Hiding(keeps_ids=True, shown=_SHOWN | _RECORDED),
    ContentPolicy.NONE: Hiding(keeps_ids=False, shown=_SHOWN | _RECORDED),
}
"""Hides what each content policy keeps out of the record."""
