"""Content in telemetry: none, unless the operator asks for it, in the conventions' form.

Its source is open-telemetry/semantic-conventions-genai: the JSON schemas of `gen_ai.input.messages`
and `gen_ai.output.messages`, and docs/gen-ai/client-inference.md; the setting's values are those of
opentelemetry-util-genai.
"""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, TypeAlias

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.spans.finish_reasons import finish_reason

CAPTURE_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

Message: TypeAlias = dict[str, Any]
"""As the schemas have it: texts, lists and further such objects."""


class ContentCapture(Enum):
    """Where prompts, outputs and tokens' texts go."""

    NO_CONTENT = "NO_CONTENT"
    SPAN_ONLY = "SPAN_ONLY"
    EVENT_ONLY = "EVENT_ONLY"
    SPAN_AND_EVENT = "SPAN_AND_EVENT"

    @property
    def on_spans(self) -> bool:
        """Whether spans carry content."""
        return self in {ContentCapture.SPAN_ONLY, ContentCapture.SPAN_AND_EVENT}

    @property
    def on_events(self) -> bool:
        """Whether there are events, and they carry content."""
        return self in {ContentCapture.EVENT_ONLY, ContentCapture.SPAN_AND_EVENT}


def capture_from(environment: Mapping[str, str]) -> ContentCapture:
    """Reads OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT; nothing is captured without it.

    "false" is understood, as it was before there were four values. "true" is not: it does not
    say where content should go.

    Raises:
        ConfigurationError: it has another value.
    """
    text = environment.get(CAPTURE_VARIABLE, "").strip()
    if not text or text.lower() == "false":
        return ContentCapture.NO_CONTENT
    try:
        return ContentCapture(text.upper())
    except ValueError:
        known = ", ".join(one.value for one in ContentCapture)
        raise ConfigurationError(
            f"{CAPTURE_VARIABLE} is {text!r}; it must be one of {known}"
        ) from None


def input_messages(started: GenerationStarted) -> list[Message]:
    """What the model read, as the conventions' messages; none where its text is not on record.

    A conversation is one message: the text that the model's chat template made of it.
    """
    if not started.prompt:
        return []
    return [{"role": "user", "parts": [{"type": "text", "content": started.prompt}]}]


def output_messages(finished: GenerationFinished) -> list[Message]:
    """What came of each sequence, as the conventions' messages."""
    return [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": result.text}],
            "finish_reason": finish_reason(result.finish_reason),
        }
        for result in finished.sequences
    ]


def as_json(messages: list[Message]) -> str | None:
    """Messages as a span's attribute has them; None where there are none."""
    if not messages:
        return None
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))
