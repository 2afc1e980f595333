"""Content of generations as GenAI messages, for operators who turn content capture on.

Source: open-telemetry/semantic-conventions-genai: the JSON schemas of `gen_ai.input.messages`
and `gen_ai.output.messages`, and docs/gen-ai/client-inference.md.
"""

import json
from typing import Any, TypeAlias

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.telemetry.spans.finish_reasons import get_conventional_reason

Message: TypeAlias = dict[str, Any]
"""JSON object of the schemas."""


def make_input_messages(started: GenerationStarted) -> list[Message]:
    """Make the conventions' messages of a prompt; none if the prompt's text is not recorded.

    A conversation is one message: the text that the model's chat template rendered.
    """
    if not started.prompt:
        return []
    return [{"role": "user", "parts": [{"type": "text", "content": started.prompt}]}]


def make_output_messages(finished: GenerationFinished) -> list[Message]:
    """Make the conventions' messages of the outputs, one for each sequence."""
    return [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": result.text}],
            "finish_reason": get_conventional_reason(result.finish_reason),
        }
        for result in finished.sequences
    ]


def serialise_messages(messages: list[Message]) -> str | None:
    """Serialise messages as JSON for a span attribute; None if there are none."""
    if not messages:
        return None
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))
