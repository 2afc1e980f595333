"""Errors on record: as the caller received them, without the caller's content."""

import pickle

import pytest

from whence.v1.generation_pb2 import Failure, GenerationFinished
from whence_server.domain.chat import ChatMessage
from whence_server.domain.errors import (
    Code,
    DocumentChangedError,
    InvalidRequestError,
    UpstreamRefusedError,
    WhenceError,
)
from whence_server.domain.generation import CallError
from whence_server.http.openai.running import check_finish
from whence_server.rpc.call_errors import make_call_error
from whence_server.rpc.status import make_status
from whence_server.text.chat import ChatTemplate
from whence_server.text.template_arguments import read_arguments

SECRET = "quokka"
ARGUMENTS = "chat.template_arguments_json"


def render(source: str, **arguments: object) -> None:
    ChatTemplate(source, {}).render([ChatMessage("user", SECRET)], arguments)


@pytest.mark.parametrize(
    ("refuse", "field", "message"),
    [
        (
            lambda: render("{{ raise_exception('no ' + messages[0].content) }}"),
            "chat.messages",
            "refused by the chat template",
        ),
        (
            lambda: render("{{ messages[0].content | int + {}[messages[0].content] + 'a' }}"),
            "chat",
            "the chat template fails on it: UndefinedError",
        ),
        (
            lambda: render("{{ messages }}", continue_final_message=SECRET),
            "chat.template_arguments.continue_final_message",
            "the last message has no field of this name to continue",
        ),
        (
            lambda: read_arguments(f'{{"{SECRET}": 1, "{SECRET}": 2}}'),
            ARGUMENTS,
            "has a key twice in one object",
        ),
        (
            lambda: read_arguments('{"a": 1234e999}'),
            ARGUMENTS,
            "has a number beyond a double's range",
        ),
        (
            lambda: read_arguments(f'{{"a": "{SECRET}\\ud800"}}'),
            ARGUMENTS,
            "a text has a lone surrogate (U+D800) at character 6; it must be valid Unicode",
        ),
    ],
)
def test_a_refusal_that_quotes_content_is_recorded_without_it(refuse, field, message):
    with pytest.raises(InvalidRequestError) as caught:
        refuse()
    told = make_status(caught.value).message
    assert SECRET in told or "1234e999" in told
    # The text process sends its errors to the front.
    error = make_call_error(pickle.loads(pickle.dumps(caught.value)))
    assert (error.reason, error.field) == ("INVALID_REQUEST", field)
    assert error.message == f"{field}: {message}"
    assert not error.exception_type


@pytest.mark.parametrize("over_http", [False, True])
def test_failure_of_an_upstream_is_recorded_without_its_message(over_http: bool) -> None:
    message = f"vllm refused the request (400): {SECRET}"
    error: WhenceError = UpstreamRefusedError(message)
    if over_http:
        failure = Failure(code=3, reason="UPSTREAM_REFUSED", message=message)
        with pytest.raises(WhenceError) as caught:
            check_finish(GenerationFinished(failure=failure))
        error = caught.value
    assert make_status(error).message == message, "the caller is told"
    assert make_call_error(error) == CallError(reason="UPSTREAM_REFUSED")
    assert error.without_content().code is Code.INVALID_ARGUMENT


def test_a_message_is_cut_to_300_characters():
    error = make_call_error(DocumentChangedError("x" * 299 + "é" + "y"))
    assert (error.reason, error.message) == ("DOCUMENT_CHANGED", "x" * 299 + "é")
