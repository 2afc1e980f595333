"""Rendering of a model's chat template, as transformers' `apply_chat_template` does it.

Time and memory are not bounded here: `generation.text_worker` sets their limits (`domain.limits`),
and the text process is killed if a template takes too long.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Template, TemplateSyntaxError
from jinja2.exceptions import TemplateRuntimeError

from whence_server.domain.chat import ChatMessage, OutputForms
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.text.chat_environment import RefusedError, compile_template
from whence_server.text.continuation import (
    continues_reasoning,
    cut_at_tag,
    open_final_message,
    take_continued_field,
)
from whence_server.text.conversation import build_conversation
from whence_server.text.output_formats import (
    ends_in_reasoning,
    find_call_format,
    find_reasoning_format,
)
from whence_server.text.template_arguments import TOOLS_FIELD, check_names
from whence_server.text.template_facts import iterates_content, uses_variable
from whence_server.text.unicode import check_unicode

MAX_CHARACTERS = 4_000_000
"""Maximum length of a rendered prompt: about a million tokens."""

MAX_REASON = 500
"""Maximum length of a template's error message, in characters."""

DEFAULT, TOOL_USE = "default", "tool_use"
"""Template names that transformers chooses by itself; the second for requests with tools."""


class RenderedChat(NamedTuple):
    """A prompt that a chat template made.

    Attributes:
        text: the prompt.
        template_name: name of the template.
        forms: forms in which the output is to be read.
        template_digest: SHA-256 of the template's source, in hex.
    """

    text: str
    template_name: str
    forms: OutputForms
    template_digest: str


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
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RenderedChat:
        """Make the prompt of a conversation.

        Args:
            messages: the conversation, oldest first.
            arguments: further variables, of JSON's types; they override the defaults (special
                tokens; `add_generation_prompt`, true; `tools` and `documents`, None).
                `continue_final_message` leaves the last message open, and then
                `add_generation_prompt` is false.
            name: name of the template; "" chooses as transformers does.
            tools: definitions of tools; None for those of the arguments, if they have any.

        Raises:
            InvalidRequestError: the template does not exist, fails, refuses the conversation, or
                would leave out its tools or tool calls.
        """
        arguments = dict(arguments or {})
        check_names(arguments)
        _set_tools(arguments, tools)
        given = arguments.get("tools")
        name = self._choose_name(name, has_tools=given is not None)
        source = self._sources[name]
        template = _compile(source)
        _check(messages, source, tools)
        field = take_continued_field(arguments)
        conversation = build_conversation(messages, takes_parts=iterates_content(source))
        final = open_final_message(conversation[-1], field, source) if field else ""
        variables = {
            **self._special_tokens,
            "tools": None,
            "documents": None,
            "add_generation_prompt": not field,
            **arguments,
            "messages": conversation,
        }
        text = _render(template, variables)
        reasoning = find_reasoning_format(source)
        if field:
            text = cut_at_tag(text, final)
            begun = continues_reasoning(field, final, reasoning)
        else:
            begun = ends_in_reasoning(text, reasoning)
        forms = OutputForms(find_call_format(source) if given else "", reasoning, begun)
        return RenderedChat(text, name, forms, _digest(source))

    def _choose_name(self, name: str, *, has_tools: bool) -> str:
        sources = self._sources
        if not sources:
            raise _make_invalid(
                "chat", "the model has no chat template; send `prompt` or `tokens` instead"
            )
        if name:
            if name in sources:
                return name
            raise _make_invalid(
                "chat.template_name",
                f"is {name[:64]!r}; the model's chat templates are {_list_names(sources)}",
            )
        for chosen in (TOOL_USE, DEFAULT) if has_tools else (DEFAULT,):
            # A model's only template is the default, with and without tools.
            if chosen in sources:
                return chosen
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


@lru_cache(maxsize=16)
def _digest(source: str) -> str:
    return hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()


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


def _set_tools(arguments: dict[str, Any], tools: Sequence[Mapping[str, Any]] | None) -> None:
    if tools is None:
        return
    if arguments.get("tools") is not None:
        raise _make_invalid(
            TOOLS_FIELD, "is set, and so is the template argument `tools`: set one of them"
        )
    arguments["tools"] = list(tools)


def _check(
    messages: Sequence[ChatMessage], source: str, tools: Sequence[Mapping[str, Any]] | None
) -> None:
    """Refuse a conversation of which the template would leave out tools or tool calls."""
    if not messages:
        raise _make_invalid("chat.messages", "must hold at least one message")
    if tools and not uses_variable(source, "tools"):
        raise _make_invalid(
            TOOLS_FIELD,
            "the model's chat template does not use tools, so that the model would not see them: "
            "describe them in a message, or serve a model whose template has tools",
        )
    for i, message in enumerate(messages):
        if message.tool_calls and "tool_calls" not in source:
            raise _make_invalid(
                f"chat.messages[{i}].tool_calls",
                "the model's chat template does not use tool calls, so that the model would not "
                "see them: write them as the message's content",
            )


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
