"""Input of the Responses API, as messages and tools of a conversation."""

from collections.abc import Mapping
from typing import Any

from whence_server.http.openai.parameters import Parameters

_TEXT_PARTS = frozenset({"input_text", "output_text"})


def read_input(parameters: Parameters) -> list[Any]:
    """Take instructions and input as a conversation."""
    instructions = parameters.take_text("instructions")
    messages: list[Any] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    given = parameters.take("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        parameters.add_fault("input", "must be a text or a list of at least one item")
        return messages
    for index, item in enumerate(given):
        _add_item(parameters, messages, item, f"input[{index}]")
    return messages


def _add_item(parameters: Parameters, messages: list[Any], item: Any, where: str) -> None:
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    if kind == "message":
        known = {name: item[name] for name in ("role", "content") if name in item}
        known["content"] = _convert_content(known.get("content"))
        if known.get("role") == "assistant" and _holds_reasoning_alone(messages):
            messages[-1] |= known
        else:
            messages.append(known)
    elif kind == "reasoning":
        _add_reasoning(parameters, messages, item, where)
    elif kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant":
            # Items of one turn of the model are one message to a chat template.
            last.setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = _convert_content(item.get("output"))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    else:
        parameters.add_fault(
            where, "must be a message, reasoning, a function_call or a function_call_output"
        )


def _add_reasoning(
    parameters: Parameters, messages: list[Any], item: Mapping[str, Any], where: str
) -> None:
    """Add reasoning of an earlier turn; items of one turn are one message to a chat template."""
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    texts = [
        text
        for part in parts
        if isinstance(part, Mapping)
        and part.get("type") == "reasoning_text"
        and isinstance(text := part.get("text"), str)
    ]
    if not texts or len(texts) != len(parts):
        parameters.add_fault(
            f"{where}.content", 'must hold parts of the type "reasoning_text" with a text'
        )
        return
    text = "".join(texts)
    messages.append({"role": "assistant", "content": None, "reasoning_content": text})


def _holds_reasoning_alone(messages: list[Any]) -> bool:
    """Return whether the last message is reasoning whose answer comes next."""
    last = messages[-1] if messages else {}
    return "reasoning_content" in last and last["content"] is None and "tool_calls" not in last


def _convert_content(content: Any) -> Any:
    """Return a content with its parts of text named as in a chat."""
    if not isinstance(content, list):
        return content
    return [
        {**part, "type": "text"}
        if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS
        else part
        for part in (_drop_echoes(part) for part in content)
    ]


def _drop_echoes(part: Any) -> Any:
    """Return a part without what an output has and an input does not need."""
    if not isinstance(part, Mapping):
        return part
    return {name: value for name, value in part.items() if name not in {"annotations", "logprobs"}}


def convert_tools(parameters: Parameters, tools: list[Any] | None) -> list[Any] | None:
    """Return tools in the form of a chat, which has the function in an object of its own."""
    if tools is None:
        return None
    converted = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            parameters.add_fault(f"tools[{index}]", 'must be a tool of the type "function"')
            continue
        function = {name: value for name, value in tool.items() if name not in {"type", "strict"}}
        converted.append({"type": "function", "function": function})
    return converted
