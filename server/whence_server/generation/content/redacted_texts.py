"""Texts of messages with marks in the place of what the detectors find."""

import json
import re
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whence.v1.redaction_pb2 import Redaction
from whence_server.redaction.marks import MarkedText
from whence_server.redaction.stream import Detectors, find_ranges

_JSON_VALUE = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)
"""A string or a number in a JSON text."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_KEPT = frozenset(
    f"whence.v1.{message}.{name}"
    for message, names in {
        "GenerationStarted": "generation_id trace_id span_id parent_span_id trace_state model "
        "model_digest tokenizer_digest processor_names request_digest source_method unavailable "
        "operation constraint_engine unrecorded_reason owner",
        "Environment": "whence_version torch_version transformers_version dtype device "
        "attention_implementation weights_digest step_kernels",
        "TrainingRunRef": "training_run_id trace_id span_id record_head",
        "AppliedAdapter": "name peft_type digest base base_model_digest weights_digest",
        "ChatRecord": "template_name tool_call_format reasoning_format template_digest",
        "Failure": "reason",
        "UpstreamInfo": "kind version model claimed_files",
        "UpstreamReport": "model fingerprint",
        "RecordedElsewhere": "library",
        "Fork": "parent_generation_id parent_trace_id parent_span_id changed_settings",
    }.items()
    for name in names.split()
)
"""Texts of whence's own making, ids and names that say who and with which model; every other text
is searched, so that a new one is, too."""


def redact_message(message: Message, detectors: Detectors, path: str = "") -> list[Redaction]:
    """Put marks in every text of a message, and of those within it; return what was replaced.

    Args:
        message: a message of the contract.
        detectors: finders of what is replaced.
        path: path of the message from the one that lists the redactions, with a dot at its end.
    """
    found: list[Redaction] = []
    for field, value in message.ListFields():
        if field.full_name in _KEPT:
            continue
        where = f"{path}{field.name}"
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                found += _redact_map(value, detectors, where)
        elif kind is not None:
            if kind.full_name.startswith("whence."):
                for name, one in _name_each(field, value, where):
                    found += redact_message(one, detectors, f"{name}.")
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                found += _redact_list(value, detectors, where)
                continue
            written, redactions = redact_text(value, detectors, where)
            if redactions:
                setattr(message, field.name, written)
                found += redactions
    return found


def redact_text(text: str, detectors: Detectors, field: str) -> tuple[str, list[Redaction]]:
    """Return a whole text with marks, and what was replaced; JSON stays JSON.

    Args:
        text: the text.
        detectors: finders of what is replaced.
        field: path of the field that holds it; its name says whether it is JSON.
    """
    if field.endswith(("_json", "json_schema")) and _is_json(text):
        return _redact_json(text, detectors, field)
    ranges = find_ranges(detectors, text)
    if not ranges:
        return text, []
    marked = MarkedText()
    marked.add(ranges)
    return marked.write(text, 0), [
        convert_redaction(marked, number, field) for number in range(len(ranges))
    ]


def convert_redaction(marked: MarkedText, number: int, field: str) -> Redaction:
    """Return one range of a text as the contract's message."""
    each = marked.ranges[number]
    begin = marked.move(each.begin)
    return Redaction(
        kind=each.kind,
        field=field,
        begin_byte=begin,
        end_byte=begin + len(each.mark),
        num_bytes=each.end - each.begin,
    )


def _is_json(text: str) -> bool:
    try:
        # Python refuses to read an integer of thousands of digits.
        json.loads(text, strict=False, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def _redact_json(text: str, detectors: Detectors, field: str) -> tuple[str, list[Redaction]]:
    """Return a JSON text with marks in its strings, and strings in the place of numbers.

    Each string is searched as it reads, without its escapes.
    """
    written: list[str] = []
    redactions: list[Redaction] = []
    num_bytes, at = 0, 0
    for literal in _JSON_VALUE.finditer(text):
        value = literal.group()
        if len(value) < detectors.shortest:
            continue
        if value.startswith('"'):
            # An escape can spell half of a character, which has no UTF-8.
            value = _LONE_SURROGATE.sub("\ufffd", json.loads(value, strict=False))
        value, found = redact_text(value, detectors, "")
        if not found:
            continue
        between = text[at : literal.start()]
        num_bytes += len(between.encode())
        for redaction in found:
            before = value.encode()[: redaction.begin_byte].decode()
            length = redaction.end_byte - redaction.begin_byte
            redaction.field = field
            # The closing quotation mark comes after the mark.
            redaction.begin_byte = num_bytes + len(_write_json(before).encode()) - 1
            redaction.end_byte = redaction.begin_byte + length
        written += [between, _write_json(value)]
        num_bytes += len(written[-1].encode())
        redactions += found
        at = literal.end()
    return "".join([*written, text[at:]]), redactions


def _write_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _redact_map(
    values: MutableMapping[str, str], detectors: Detectors, where: str
) -> list[Redaction]:
    found: list[Redaction] = []
    for key, value in list(values.items()):
        new_key, in_key = redact_text(key, detectors, "")
        written, in_value = redact_text(value, detectors, f"{where}[{new_key}]")
        if in_key:
            del values[key]
            # Two keys with the same marks stay two.
            while new_key in values:
                new_key += "+"
        if in_key or in_value:
            values[new_key] = written
        found += in_value
    return found


def _redact_list(values: MutableSequence[str], detectors: Detectors, where: str) -> list[Redaction]:
    found: list[Redaction] = []
    for index, value in enumerate(values):
        values[index], redactions = redact_text(value, detectors, f"{where}[{index}]")
        found += redactions
    return found


def _name_each(field: FieldDescriptor, value: Any, where: str) -> Iterator[tuple[str, Message]]:
    """Yield each message of a field, with its path."""
    if not field.is_repeated:
        yield where, value
        return
    for index, one in enumerate(value):
        yield f"{where}[{index}]", one
