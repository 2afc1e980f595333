"""Templates of links to traces: accepted ones, and the errors of malformed ones."""

import pytest

from whence.cli.trace_link import TRACE_URL_VARIABLE, choose_template, make_trace_link
from whence.generation import GenerationState
from whence.v1.generation_pb2 import GenerationEvent, GenerationStarted


@pytest.mark.parametrize(
    "template",
    [
        "http://localhost:16686/trace/{trace_id}",
        "https://h/explore?left={%22query%22:%22{trace_id}%22}&again={trace_id}",
        "http://[::1]:6006/redirects/traces/{trace_id}",
    ],
)
def test_templates_are_taken_from_the_flag_and_the_environment(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_template(template) == template
    monkeypatch.setenv(TRACE_URL_VARIABLE, template)
    assert choose_template(None) == template


def test_no_template_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACE_URL_VARIABLE, raising=False)
    assert choose_template(None) == ""
    monkeypatch.setenv(TRACE_URL_VARIABLE, "")
    assert choose_template(None) == ""
    monkeypatch.setenv(TRACE_URL_VARIABLE, "http://h/{trace_id}")
    assert choose_template("") == "", "the flag wins"
    assert make_trace_link("", state(trace_flags=1)) == ""


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("http://caf\udce9/{trace_id}", "is not http://HOST"),
        ("http://localhost:16686", "does not say where the trace id goes: {trace_id}"),
        ("http://localhost/{traceid}", "does not say where the trace id goes: {trace_id}"),
        ("localhost:16686/trace/{trace_id}", "is not http://HOST/... or https://HOST/..."),
        ("file:///trace/{trace_id}", "is not http://HOST/..."),
        ("http:///{trace_id}", "is not http://HOST/..."),
        ("http://[::1/{trace_id}", "is not http://HOST/..."),
        ("http://a b/{trace_id}", "is not http://HOST/..."),
    ],
)
def test_what_is_no_template_is_told(template: str, words: str) -> None:
    with pytest.raises(ValueError, match="the trace URL") as caught:
        choose_template(template)
    assert words in str(caught.value)


def state(**fields: int) -> GenerationState:
    state = GenerationState("g", lambda *_: "")
    started = GenerationStarted(trace_id="ab" * 16, **fields)
    state._observe(GenerationEvent(started=started))
    return state


def test_a_link_is_made_where_there_are_spans() -> None:
    template = "http://h/{trace_id}#{trace_id}"
    assert make_trace_link(template, state(trace_flags=1)) == f"http://h/{'ab' * 16}#{'ab' * 16}"
    assert make_trace_link(template, state(trace_flags=0)) == ""
    assert make_trace_link(template, GenerationState("g", lambda *_: "")) == ""
