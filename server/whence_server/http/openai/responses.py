"""POST /v1/responses: text in and out."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from whence_server.http.bodies import read_json_object
from whence_server.http.exchange import Exchange
from whence_server.http.openai.answers import send_answer, start_generation
from whence_server.http.openai.parameters import Parameters
from whence_server.http.openai.requests import (
    Wanted,
    make_request,
    read_model,
    read_options,
    read_parameters,
    read_schema,
    read_stream,
    read_tools,
    read_top_logprobs,
)
from whence_server.http.openai.response_input import convert_tools, read_input
from whence_server.http.openai.response_writer import ResponseWriter
from whence_server.http.openai.running import Front

_LOGPROBS = "message.output_text.logprobs"


class Responses:
    """Handler of the route."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Generate a response."""
        body = await read_json_object(exchange.request, self._front.max_body_bytes)
        wanted = self._read(read_parameters(body, self._front.serving))
        model, tokenizer = await start_generation(self._front, exchange, wanted)
        writer = ResponseWriter(exchange, wanted, model, tokenizer, _echo(body))
        return await send_answer(self._front, exchange, wanted, writer)

    def _read(self, parameters: Parameters) -> Wanted:
        options = {
            **read_model(parameters, self._front.serving),
            "messages": read_input(parameters),
            "json_schema": _read_text_schema(parameters),
            "tools": convert_tools(parameters, read_tools(parameters)),
            "max_new_tokens": parameters.take_integer("max_output_tokens", 1),
            **read_options(parameters),
        }
        include = parameters.take_list("include")
        for item in include:
            if item != _LOGPROBS:
                parameters.add_fault("include", f'may hold "{_LOGPROBS}" alone')
        num_top = read_top_logprobs(parameters, "top_logprobs", wanted=_LOGPROBS in include)
        streams, includes_usage = read_stream(parameters, offers_usage=False)
        _rename_for_chat(parameters)
        _refuse_what_is_not_offered(parameters)
        request = make_request(parameters, None, options, self._front.limits, num_top)
        return Wanted(request, streams, includes_usage, num_top)


def _refuse_what_is_not_offered(parameters: Parameters) -> None:
    parameters.expect("background", False)
    # The journal keeps the generation, and `GenerationService` gives it back.
    parameters.expect("store", True, False)
    parameters.expect("truncation", "disabled")
    for name in ("conversation", "max_tool_calls", "moderation", "previous_response_id", "prompt"):
        parameters.expect(name)


def _rename_for_chat(parameters: Parameters) -> None:
    """Pass on what an upstream's chat completions, which it is asked for, name in another way."""
    reasoning = parameters.take_object("reasoning")
    parameters.pass_on_as("reasoning_effort", reasoning, "effort")
    # Reasoning is told whole, and nobody makes a summary of it.
    for name in ("summary", "generate_summary"):
        reasoning.expect(name, "auto")
    reasoning.refuse_unknown()
    choice = parameters.passed_on.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        named = {"type": "function", "function": {"name": choice.get("name")}}
        parameters.passed_on["tool_choice"] = named


def _read_text_schema(parameters: Parameters) -> Any:
    text = parameters.take_object("text")
    schema = read_schema(parameters, "text.format", text.take("format"))
    parameters.pass_on_as("verbosity", text, "verbosity", "medium")
    text.refuse_unknown()
    return schema


_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "temperature": None,
    "top_p": None,
    "top_logprobs": 0,
    "user": None,
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": True,
    "background": False,
    "truncation": "disabled",
    "text": {"format": {"type": "text"}},
}
"""Parameters that a response repeats, with the values of those that are not given."""


def _echo(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()
    }
