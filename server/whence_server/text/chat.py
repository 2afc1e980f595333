"""Rendering of a model's chat template, as transformers' `apply_chat_template` does it.

Time and memory are not bounded here: `generation.text_worker` sets their limits (`domain.limits`),
and the text process is killed if a template takes too long.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from jinja2.exceptions import TemplateRuntimeError

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.requests import ChatMessage
from whence_server.text.chat_environment import RefusedError, compile_template
from whence_server.text.template_arguments import check_names
from whence_server.text.unicode import LoneSurrogateError, check_unicode

MAX_CHARACTERS = 4_000_000
"""Maximum length of a rendered prompt: about a million tokens."""

MAX_REASON = 500
"""Maximum length of a template's error message, in characters."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""Template names that transformers chooses by itself; the second for requests with tools."""

_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""transformers' mark for the end of a message to continue."""


class ChatTemplate:
    """A model's chat templates, compiled at their first use."""

    def __init__(
        self, source: str | Mapping[str, str] | None, special_tokens: Mapping[str, str]
    ) -> None:
        """Keep the templates.

        Args:
            source: Jinja source; several sources by name; None if the model has no template.
            special_tokens: template variables, for example {"bos_token": "<s>"}.
        """
        self._sources = list_templates(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[ChatMessage],
        arguments: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> str:
        """Make the prompt of a conversation.

        Args:
            messages: the conversation, oldest first.
            arguments: further variables, of JSON's types; they override the defaults (special
                tokens; `add_generation_prompt`, true; `tools` and `documents`, None).
                `continue_final_message` leaves the last message open, and then
                `add_generation_prompt` is false.
            name: name of the template; "" chooses as transformers does.

        Raises:
            InvalidRequestError: the template does not exist, fails, or refuses the conversation.
        """
        arguments = dict(arguments or {})
        source = self._get_source(name, has_tools=arguments.get("tools") is not None)
        template = _compile(source)
        _check(messages, arguments)
        continued = _take_continued_field(arguments)
        conversation = [{"role": m.role, "content": m.content} for m in messages]
        final = _open_final_message(conversation, continued, source) if continued else ""
        variables = {
            **self._special_tokens,
            "tools": None,
            "documents": None,
            "add_generation_prompt": not continued,
            **arguments,
            "messages": conversation,
        }
        text = _render(template, variables)
        return _cut_at_tag(text, final) if continued else text

    def _get_source(self, name: str, *, has_tools: bool) -> str:
        sources = self._sources
        if not sources:
            raise _make_invalid(
                "chat", "the model has no chat template; send `prompt` or `tokens` instead"
            )
        if name:
            if name in sources:
                return sources[name]
            raise _make_invalid(
                "chat.template_name",
                f"is {name[:64]!r}; the model's chat templates are {_list_names(sources)}",
            )
        for chosen in (TOOL_USE, DEFAULT) if has_tools else (DEFAULT,):
            # A model's only template is the default, with and without tools.
            if chosen in sources:
                return sources[chosen]
        raise _make_invalid(
            "chat.template_name",
            "must be set: the model has several chat templates and none is the default; "
            f"they are {_list_names(sources)}",
        )


def list_templates(source: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return a model's chat templates by name; a single one is the default."""
    if source is None:
        return {}
    return {DEFAULT: source} if isinstance(source, str) else dict(source)


def _list_names(sources: Mapping[str, str]) -> str:
    return ", ".join(repr(name) for name in sorted(sources))


def _compile(source: str) -> Template:
    try:
        return compile_template(source)
    except TemplateSyntaxError as error:
        raise _make_invalid(
            "chat",
            f"the model's chat template is broken (line {error.lineno}: {error.message}); "
            "send `prompt` or `tokens` instead",
        ) from error
    except MemoryError:
        raise _make_invalid(
            "chat", "the chat template needs more memory than it may have"
        ) from None
    except Exception as error:
        # Python's compiler has limits of its own, and an error for each: on nesting, for one.
        reason = _shorten(f"{type(error).__name__}: {error}")
        raise _make_invalid(
            "chat",
            f"the model's chat template cannot be compiled ({reason}); send `prompt` or `tokens` "
            "instead",
        ) from error


def _check(messages: Sequence[ChatMessage], arguments: Mapping[str, Any]) -> None:
    if not messages:
        raise _make_invalid("chat.messages", "must hold at least one message")
    check_names(arguments)
    for i, message in enumerate(messages):
        for name in ("role", "content"):
            try:
                check_unicode(getattr(message, name))
            except LoneSurrogateError as error:
                raise _make_invalid(f"chat.messages[{i}].{name}", str(error)) from None


def _take_continued_field(arguments: dict[str, Any]) -> str:
    """Take `continue_final_message` out; return the field that it means, or "" for none."""
    wanted = arguments.pop("continue_final_message", None)
    if not wanted:
        return ""
    if arguments.get("add_generation_prompt"):
        raise _make_invalid(
            "chat.template_arguments",
            "`continue_final_message` and `add_generation_prompt` contradict: the one goes on "
            "with the last message, the other begins a new one",
        )
    return wanted if isinstance(wanted, str) else "content"


def _open_final_message(conversation: list[dict[str, str]], field: str, source: str) -> str:
    """Append the mark to the last message; return its text."""
    final = conversation[-1].get(field)
    if final is None:
        raise _refuse_continuation(
            f"the last message has no {field[:64]!r} to continue",
            "the last message has no field of this name to continue",
        )
    if field not in source:
        raise _refuse_continuation(f"the chat template does not use {field!r}")
    conversation[-1][field] = final + _CONTINUE_TAG
    return final


def _cut_at_tag(text: str, final: str) -> str:
    """Truncate the prompt at the end of the last message, exactly where transformers does."""
    tag = _CONTINUE_TAG.strip()
    if final.strip() not in text or tag not in text:
        raise _refuse_continuation(
            "the chat template leaves out the last message, or part of it, so that it cannot be "
            "continued"
        )
    end = text.rindex(tag)
    if text[end : end + len(_CONTINUE_TAG)] == _CONTINUE_TAG:
        return text[:end]
    # The template trims messages: trim the text before the cut as well.
    return text[:end].rstrip()


def _refuse_continuation(description: str, recorded: str | None = None) -> InvalidRequestError:
    field = "chat.template_arguments.continue_final_message"
    return _make_invalid(field, description, recorded)


def _make_invalid(field: str, description: str, recorded: str | None = None) -> InvalidRequestError:
    """Return an error of a field; `recorded` stands for a description that quotes content."""
    return InvalidRequestError(FieldViolation(field, description, recorded))


def _render(template: Template, variables: dict[str, Any]) -> str:
    try:
        text = _collect_bounded(template, variables)
        check_unicode(text)
    except RefusedError as refusal:
        reason = _shorten(str(refusal))
        raise _make_invalid(
            "chat.messages",
            f"refused by the chat template: {reason}",
            "refused by the chat template",
        ) from None
    except MemoryError:
        raise _make_invalid(
            "chat", "the chat template needs more memory than it may have"
        ) from None
    except Exception as error:
        # A template can fail with any exception that Python has.
        reason = _shorten(f"{type(error).__name__}: {error}")
        recorded = f"the chat template fails on it: {type(error).__name__}"
        raise _make_invalid("chat", f"the chat template fails on it: {reason}", recorded) from error
    return text


def _shorten(reason: str) -> str:
    """Return a reason cut to fit an error's details, as a template may put anything in it."""
    reason = reason.encode(errors="backslashreplace").decode()
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."


def _collect_bounded(template: Template, variables: dict[str, Any]) -> str:
    """Return the template's output, if it is not too long."""
    parts: list[str] = []
    num_characters = 0
    for part in template.generate(variables):
        num_characters += len(part)
        if num_characters > MAX_CHARACTERS:
            raise TemplateRuntimeError(f"its output is longer than {MAX_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)
