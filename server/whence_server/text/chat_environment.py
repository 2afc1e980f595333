"""The jinja2 environment of chat templates, with the functions and filters of transformers.

Templates come from the model, messages and arguments from the caller: templates see only plain
data, in jinja2's immutable sandbox. The rendering process bounds time and memory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class RefusedError(TemplateRuntimeError):
    """Error of a template that called `raise_exception`."""


@cache
def compile_template(source: str) -> Template:
    """Compile a chat template, once.

    Raises:
        jinja2.TemplateSyntaxError: the source is malformed.
    """
    return _make_environment().from_string(source)


def parse_template(source: str) -> nodes.Template:
    """Return a chat template's syntax tree.

    Raises:
        jinja2.TemplateSyntaxError: the source is malformed.
    """
    return _make_environment().parse(source)


@cache
def _make_environment() -> Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _dump_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _format_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _make_namespace
    return environment


class _GenerationTag(Extension):
    """The tag `{% generation %}`, which marks an assistant's text; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # As a call block, so that it has a scope of its own, like in transformers.
        return nodes.CallBlock(self.call_method("_pass_on"), [], [], body).set_lineno(lineno)

    def _pass_on(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise RefusedError(message)


def _dump_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return the value as JSON, without the HTML escapes of jinja2's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@dataclass(slots=True)
class _Time:
    """Time that a template gets instead of the present one."""

    value: datetime
    was_read: bool = False


_time: ContextVar[_Time | None] = ContextVar("time of chat templates", default=None)


@contextmanager
def at_time(value: datetime) -> Iterator[None]:
    """Let templates print a local time instead of the present one."""
    token = _time.set(_Time(value))
    try:
        yield
    finally:
        _time.reset(token)


def was_time_read() -> bool:
    """Return whether a template has read the time that `at_time` set."""
    time = _time.get()
    return time is not None and time.was_read


def _format_now(form: str) -> str:
    time = _time.get()
    if time is None:
        return datetime.now().strftime(form)  # noqa: DTZ005 - local time, as templates expect
    time.was_read = True
    return time.value.strftime(form)


class _Dict:
    """`dict` for templates, without the attributes of the type itself."""

    def __call__(self, *args: Mapping[str, object], **kwargs: object) -> dict[str, object]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[str], value: object = None) -> dict[str, object]:
        return dict.fromkeys(keys, value)


def _make_namespace(*args: Mapping[str, object], **kwargs: object) -> Namespace:
    namespace = _PublicNamespace()
    for name, value in dict(*args, **kwargs).items():
        namespace[name] = value
    return namespace


class _PublicNamespace(Namespace):
    """Namespace that refuses names with a leading underscore, which are Python's."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(
                f"a namespace cannot have the attribute {name!r}: it begins with an underscore"
            )
        super().__setitem__(name, value)
