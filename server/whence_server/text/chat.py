"""Renders a model's chat template as transformers' `apply_chat_template` does.

Templates are the model's, messages and arguments are the caller's: they only ever see plain
data, in jinja2's immutable sandbox. Bounded are the length of the output and of every
`range`. Not bounded are the time of nested loops that print nothing, and the size of a
single value that the template builds ("x" * 10**9, a `set` or `macro` block with loops in
it): a model's template is trusted that far.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import NoReturn

from jinja2 import Environment, Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.requests import ChatMessage
from whence_server.text.unicode import LoneSurrogateError, check_unicode

MAX_CHARACTERS = 4_000_000
"""Longest prompt that a template may make; a million tokens are about as much."""


class ChatTemplate:
    """One model's chat template, compiled at its first use."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str]) -> None:
        """Keeps the template.

        Args:
            source: Jinja, or None where the model has no chat template.
            special_tokens: variables for it, such as {"bos_token": "<s>"}.
        """
        self._source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self, messages: Sequence[ChatMessage], arguments: Mapping[str, object] | None = None
    ) -> str:
        """Makes the prompt of a conversation.

        Args:
            messages: the conversation, oldest first.
            arguments: further variables, of JSON's types; they go before those that the
                template has by default (special tokens, `add_generation_prompt`, which is
                true, and `tools` and `documents`, which are None).

        Raises:
            InvalidRequestError: there is no template, or it cannot or will not render this.
        """
        arguments = arguments or {}
        template = self._compiled()
        _check(messages, arguments)
        variables = {
            **self._special_tokens,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **arguments,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
        }
        try:
            text = _bounded(template, variables)
            check_unicode(text)
        except _RefusedError as refusal:
            raise _invalid("chat.messages", f"refused by the chat template: {refusal}") from None
        except Exception as error:
            # A template can fail with any exception that Python has.
            raise _invalid(
                "chat", f"the chat template fails on it: {type(error).__name__}: {error}"
            ) from error
        return text

    def _compiled(self) -> Template:
        if self._source is None:
            raise _invalid(
                "chat", "the model has no chat template; send `prompt` or `tokens` instead"
            )
        try:
            return _compile(self._source)
        except TemplateSyntaxError as error:
            raise _invalid(
                "chat",
                f"the model's chat template is broken (line {error.lineno}: {error.message}); "
                "send `prompt` or `tokens` instead",
            ) from error


def _check(messages: Sequence[ChatMessage], arguments: Mapping[str, object]) -> None:
    if not messages:
        raise _invalid("chat.messages", "must hold at least one message")
    if "messages" in arguments:
        raise _invalid("chat.template_arguments", "has `messages`, which is `chat.messages`")
    for i, message in enumerate(messages):
        for name in ("role", "content"):
            try:
                check_unicode(getattr(message, name))
            except LoneSurrogateError as error:
                raise _invalid(f"chat.messages[{i}].{name}", str(error)) from None


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description))


def _bounded(template: Template, variables: dict[str, object]) -> str:
    """The template's output, unless it goes on and on."""
    parts: list[str] = []
    num_characters = 0
    for part in template.generate(variables):
        num_characters += len(part)
        if num_characters > MAX_CHARACTERS:
            raise TemplateRuntimeError(f"its output is longer than {MAX_CHARACTERS} characters")
        parts.append(part)
    return "".join(parts)


@cache
def _compile(source: str) -> Template:
    return _environment().from_string(source)


@cache
def _environment() -> Environment:
    """Everything that chat templates may count on, by transformers' conventions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _dict
    environment.globals["namespace"] = _namespace
    return environment


class _GenerationTag(Extension):
    """Accepts `{% generation %}`, which marks what an assistant said; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # As a call block, so that it has a scope of its own, like in transformers.
        return nodes.CallBlock(self.call_method("_passed_on"), [], [], body).set_lineno(lineno)

    def _passed_on(self, caller: Callable[[], str]) -> str:
        return caller()


class _RefusedError(TemplateRuntimeError):
    """The template called `raise_exception`."""


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - local time, as templates expect


def _dict(*args: Mapping[str, object], **kwargs: object) -> dict[str, object]:
    # The type itself would give templates its attributes as well.
    return dict(*args, **kwargs)


def _namespace(*args: Mapping[str, object], **kwargs: object) -> Namespace:
    namespace = _PublicNamespace()
    for name, value in _dict(*args, **kwargs).items():
        namespace[name] = value
    return namespace


class _PublicNamespace(Namespace):
    """Takes no names with a leading underscore: those are Python's, not the template's."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace has no attributes such as {name!r}")
        super().__setitem__(name, value)
