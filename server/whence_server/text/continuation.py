"""Continuation of a conversation's last message, as transformers' `continue_final_message` does it.

A mark is appended to the message, and the rendered prompt is cut at the mark.
"""

from typing import Any

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.text.conversation import REASONING_FIELDS, Turn
from whence_server.text.output_formats import REASONING_FORMATS_BY_NAME

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""transformers' own mark."""


def take_continued_field(arguments: dict[str, Any]) -> str:
    """Take `continue_final_message` out; return the field that it means, or "" for none.

    Raises:
        InvalidRequestError: a new message is to begin, too.
    """
    wanted = arguments.pop("continue_final_message", None)
    if not wanted:
        return ""
    if arguments.get("add_generation_prompt"):
        raise InvalidRequestError(
            FieldViolation(
                "chat.template_arguments",
                "`continue_final_message` and `add_generation_prompt` contradict: the one goes on "
                "with the last message, the other begins a new one",
            )
        )
    return wanted if isinstance(wanted, str) else "content"


def open_final_message(turn: Turn, field: str, source: str) -> str:
    """Append the mark to a field of the last message; return the text before the mark.

    Args:
        turn: the last message, which is changed.
        field: name of the field.
        source: the chat template's source.

    Raises:
        InvalidRequestError: the message has no text of this name, or the template does not use it.
    """
    final = turn.get(field)
    # Reasoning has several names: the template may read any of them.
    fields = [name for name in REASONING_FIELDS if turn.get(name) == final]
    fields = fields if field in REASONING_FIELDS else [field]
    part = final[-1] if isinstance(final, list) and final else None
    text = part.get("text") if isinstance(part, dict) else final
    if not isinstance(text, str):
        raise _refuse(
            f"the last message has no {field[:64]!r} to continue",
            "the last message has no field of this name to continue",
        )
    if not any(name in source for name in fields):
        raise _refuse(f"the chat template does not use {field!r}")
    if part is not None:
        part["text"] = text + _TAG
    else:
        turn.update(dict.fromkeys(fields, text + _TAG))
    return text


def cut_at_tag(prompt: str, final: str) -> str:
    """Truncate the prompt at the end of the last message, exactly where transformers does.

    Args:
        prompt: the rendered prompt, with the mark.
        final: the text that goes on.

    Raises:
        InvalidRequestError: the template left out the text or the mark.
    """
    tag = _TAG.strip()
    if final.strip() not in prompt or tag not in prompt:
        raise _refuse(
            "the chat template leaves out the last message, or part of it, so that it cannot be "
            "continued"
        )
    end = prompt.rindex(tag)
    if prompt[end : end + len(_TAG)] == _TAG:
        return prompt[:end]
    # The template trims messages: trim the text before the cut as well.
    return prompt[:end].rstrip()


def continues_reasoning(field: str, final: str, format_name: str) -> bool:
    """Return whether a text that goes on ends inside of reasoning.

    Args:
        field: name of the message's field that goes on.
        final: its text.
        format_name: name of the model's format of reasoning; "" for none.
    """
    if not format_name:
        return False
    marks = REASONING_FORMATS_BY_NAME[format_name]
    return field in REASONING_FIELDS or final.rfind(marks.begin) > final.rfind(marks.end)


def _refuse(description: str, recorded: str | None = None) -> InvalidRequestError:
    field = "chat.template_arguments.continue_final_message"
    return InvalidRequestError(FieldViolation(field, description, recorded))
