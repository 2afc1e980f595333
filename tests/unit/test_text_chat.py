"""Chat templates, compared with transformers' `apply_chat_template`."""

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import byte_level
from transformers import PreTrainedTokenizerFast

from whence_server.domain.chat import ChatMessage
from whence_server.domain.errors import InvalidRequestError
from whence_server.text import chat
from whence_server.text.chat import ChatTemplate

CHATML = """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}
    {{ '<|im_start|>assistant\n' }}
{% endif %}"""

LLAMA_3 = """{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

MISTRAL = """{{ bos_token }}{% for message in messages -%}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{ raise_exception('roles must alternate user/assistant/user/...') }}
  {%- endif %}
  {% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]
  {%- else %}{{ message['content'] }}{{ eos_token }}{% endif %}
{% endfor %}"""

LOOP_CONTROLS = """{% for message in messages %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{% if loop.index > 3 %}{% break %}{% endif %}
[{{ loop.index }}] {{ message.content }}
{% endfor %}{% if documents %}{{ documents|length }}{% else %}no documents{% endif %}"""

GENERATION = """{% for message in messages %}{% if message.role == 'assistant' %}
{% generation %}<a>{{ message.content }}</a>{% endgeneration %}
{% else %}<u>{{ message.content }}</u>{% endif %}
{%- endfor %}"""

NAMESPACE = """{% set ns = namespace(system='', seen=0) %}
{% for message in messages %}
  {% set ns.seen = ns.seen + 1 %}
  {% if message.role == 'system' %}{% set ns.system = message.content %}{% endif %}
{% endfor %}
{{ ns.system }} ({{ ns.seen }}) {{ dict(a=1, b='<&>')|tojson }} {{ strftime_now('%d %b %Y') }}
{% macro shout(text) %}{{ text|upper }}!{% endmacro %}
{{ shout(messages[-1].content) }} {{ {'ü': messages[0].content}|tojson }} {{ thinking }}
{{ tools is none }} {{ documents is none }}
{{ namespace({'x': 1}).x }} {{ range(3)|list }} {{ messages|map(attribute='role')|join(',') }}"""

TEMPLATES = {
    "chatml": CHATML,
    "llama_3": LLAMA_3,
    "mistral": MISTRAL,
    "loop_controls": LOOP_CONTROLS,
    "generation": GENERATION,
    "namespace": NAMESPACE,
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "añadir", "parameters": {"html": "<b>&'"}}}]
TALK = (
    ChatMessage("system", " Be <b>brief</b> & kind. "),
    ChatMessage("user", "Grüße, “what's” up?\n"),
    ChatMessage("assistant", "{{ not a template }} {% nor this %}"),
    ChatMessage("user", "再见 😀"),
)
templates = pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())


def theirs(source: str, messages: tuple[ChatMessage, ...], **arguments: object) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), chat_template=source, **SPECIAL
    )
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    options = {"add_generation_prompt": True, **arguments}
    return tokenizer.apply_chat_template(conversation, tokenize=False, **options)


def ours(source: str, messages: tuple[ChatMessage, ...], **arguments: object) -> str:
    return ChatTemplate(source, SPECIAL).render(messages, arguments).text


def refusal(source: str | None, *messages: ChatMessage, **arguments: object) -> tuple[str, str]:
    """Return the field at fault and the description."""
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(source, SPECIAL).render(messages, arguments)
    (violation,) = caught.value.violations
    return violation.field, violation.description


@templates
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": TOOLS, "documents": [{"title": "t", "text": "x"}]},
        {"thinking": True, "bos_token": "<other>"},
    ],
    ids=["defaults", "no_generation_prompt", "tools", "overrides"],
)
def test_renders_as_transformers_does(source: str, arguments: dict[str, object]) -> None:
    messages = TALK[1:] if source == MISTRAL else TALK
    assert ours(source, messages, **arguments) == theirs(source, messages, **arguments)


@templates
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_renders_any_content_as_transformers_does(source: str, contents: list[str]) -> None:
    roles = ("user", "assistant")
    messages = tuple(ChatMessage(roles[i % 2], text) for i, text in enumerate(contents))
    assert ours(source, messages) == theirs(source, messages)


def test_strftime_now_is_today() -> None:
    form = "%Y-%m-%d %H"
    before = datetime.now().astimezone().strftime(form)
    text = ours(f"{{{{ strftime_now('{form}') }}}}", TALK)
    assert text in {before, datetime.now().astimezone().strftime(form)}


def test_model_without_a_template_is_an_error() -> None:
    field, description = refusal(None, *TALK)
    assert field == "chat"
    assert "no chat template" in description


def test_raise_exception_is_an_error_with_its_message() -> None:
    field, description = refusal(MISTRAL, *TALK)
    assert field == "chat.messages"
    assert "roles must alternate user/assistant" in description


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{% for %}", "broken (line 1"),
        ("{{ " + "(" * 150 + "1" + ")" * 150 + " }}", "cannot be compiled (RecursionError"),
        ("{% if 1 %}" * 150 + "{% endif %}" * 150, "cannot be compiled (IndentationError"),
        ("{{ 10 ** 9000 }}", "cannot be compiled (ValueError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'other' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ '\\ud800' }}", "lone surrogate"),
    ],
)
def test_a_failing_template_is_an_error_of_the_request(source: str, part: str) -> None:
    field, description = refusal(source, *TALK)
    assert field == "chat"
    assert part in description


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ dict.__base__.__subclasses__() }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ '{0.__class__.__mro__[1]}'.format(messages) }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    field, _ = refusal(source, *TALK)
    assert field == "chat"


def test_endless_output_is_refused() -> None:
    loops = "{% for i in range(100000) %}" * 3 + "x" * 100 + "{% endfor %}" * 3
    assert str(chat.MAX_CHARACTERS) in refusal(loops, *TALK)[1]
    assert "Range too big" in refusal("{{ range(10**6)|length }}", *TALK)[1]


def test_empty_conversation_is_refused() -> None:
    assert refusal(CHATML) == ("chat.messages", "must hold at least one message")


def test_lone_surrogate_is_an_error_with_its_message() -> None:
    field, description = refusal(CHATML, TALK[0], ChatMessage("user", "ab\ud800"))
    assert field == "chat.messages[1].content"
    assert "at character 2" in description


def test_rendering_does_not_change_the_callers_arguments() -> None:
    arguments = {"items": [1]}
    template = ChatTemplate(
        "{% set items = items + [2] %}{{ items }}{% set bos_token = 1 %}", SPECIAL
    )
    rendered = [template.render(TALK, arguments).text for _ in range(2)]
    assert rendered == ["[1, 2]", "[1, 2]"]
    assert arguments == {"items": [1]}
