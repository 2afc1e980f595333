"""Messages of a conversation, as OpenAI's clients send them."""

from collections.abc import Mapping
from typing import Any

from whence_server.http.openai.parameters import Parameters

_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def read_messages(parameters: Parameters) -> list[dict[str, str]]:
    """Take the conversation; contents in parts are joined to one text."""
    messages = parameters.take_list("messages")
    if not messages:
        parameters.add_fault("messages", "must be a list of at least one message")
    return [
        _read_message(parameters, f"messages[{index}]", message)
        for index, message in enumerate(messages)
    ]


def _read_message(parameters: Parameters, where: str, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        parameters.add_fault(where, 'must be an object such as {"role": "user", "content": "Hi"}')
        return {"role": "user", "content": ""}
    given = {name: value for name, value in message.items() if value is not None}
    role = given.pop("role", None)
    if not isinstance(role, str) or not role:
        parameters.add_fault(f"{where}.role", 'must be a role such as "user"')
        role = "user"
    content = read_content(parameters, f"{where}.content", given.pop("content", None))
    for name in given:
        parameters.add_fault(f"{where}.{name}", "is not offered")
    return {"role": role, "content": content}


def read_content(parameters: Parameters, where: str, content: Any) -> str:
    """Return a message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        parameters.add_fault(where, "must be a text or a list of parts of text")
        return ""
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            parameters.add_fault(
                f"{where}[{index}]", 'must be a part of text: {"type": "text", "text": "..."}'
            )
        else:
            texts.append(part["text"])
    return "".join(texts)
