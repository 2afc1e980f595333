"""Content in telemetry: none, unless the operator asks for it, in the conventions' form.

Its source is open-telemetry/semantic-conventions-genai: the JSON schemas of `gen_ai.input.messages`
and `gen_ai.output.messages`, and docs/gen-ai/client-inference.md.
"""

import json
from typing import Any, TypeAlias

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.telemetry.spans.finish_reasons import finish_reason

Message: TypeAlias = dict[str, Any]
"""As the schemas have it: texts, lists and further such objects."""


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
