"""Variables of a chat template, and the definitions of its tools, from their JSON."""

from collections.abc import Mapping
from typing import Any

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.text.strict_json import name_kind, read_json

FIELD, TOOLS_FIELD = "chat.template_arguments_json", "chat.tools_json"
_TOKENIZING = "is about tokenizing, which the server does itself"
REFUSED: Mapping[str, str] = {
    "self": "is no variable of a chat template",
    "conversation": "is `chat.messages`",
    "conversations": "is `chat.messages`",
    "messages": "is `chat.messages`",
    "chat_template": "is the model's own; `chat.template_name` chooses one of several",
    "tokenize": _TOKENIZING,
    "sanitize_control_tokens": _TOKENIZING,
    "padding": _TOKENIZING,
    "truncation": f"{_TOKENIZING}: a prompt that is too long is refused, never cut",
    "max_length": f"{_TOKENIZING}: a prompt that is too long is refused, never cut",
    "return_tensors": _TOKENIZING,
    "return_dict": _TOKENIZING,
    "return_assistant_tokens_mask": "asks for a mask, which a generation has no use for",
    "tokenizer_kwargs": _TOKENIZING,
}
"""Parameters of transformers' `apply_chat_template` that are refused, with the reason."""


def read_arguments(text: str) -> dict[str, Any]:
    """Parse the arguments from JSON; "" has none.

    Raises:
        InvalidRequestError: it is not a JSON object, breaks a rule of `strict_json`, or has a name
            in `REFUSED`.
    """
    if not text:
        return {}
    arguments = read_json(text, FIELD)
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            FieldViolation(FIELD, f"must be a JSON object, not {name_kind(arguments)}")
        )
    check_names(arguments)
    return arguments


def read_tools(text: str) -> list[dict[str, Any]] | None:
    """Parse definitions of tools from JSON; "" has none.

    Raises:
        InvalidRequestError: it is not a JSON array of objects, or breaks a rule of `strict_json`.
    """
    if not text:
        return None
    tools = read_json(text, TOOLS_FIELD)
    if not isinstance(tools, list):
        raise InvalidRequestError(
            FieldViolation(TOOLS_FIELD, f"must be a JSON array of objects, not {name_kind(tools)}")
        )
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise InvalidRequestError(
                FieldViolation(f"{TOOLS_FIELD}[{i}]", f"must be an object, not {name_kind(tool)}")
            )
    return tools


def check_names(arguments: Mapping[str, Any]) -> None:
    """Refuse names in `REFUSED`, and `tools` and `documents` that are not lists of objects.

    Raises:
        InvalidRequestError: arguments break rules; the error names all of them.
    """
    faults = [
        FieldViolation("chat.template_arguments", f"has `{name}`, which {REFUSED[name]}")
        for name in arguments
        if name in REFUSED
    ]
    for name in ("tools", "documents"):
        value = arguments.get(name)
        is_list = isinstance(value, list | tuple) and all(isinstance(v, dict) for v in value)
        if value is not None and not is_list:
            description = f"`{name}` must be an array of objects, or null"
            faults.append(FieldViolation(f"chat.template_arguments.{name}", description))
    if faults:
        raise InvalidRequestError(*faults)
