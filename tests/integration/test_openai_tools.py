"""Tools over OpenAI's API: calls are read from what the model writes, and sent back."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from chat_templates import FAMILIES, TOOLS
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCallFunction
from server_process import ServerProcess
from tiny_models import save_tiny_model
from transformers import AddedToken, AutoTokenizer

from whence import Client

QUESTION = {"role": "user", "content": "How warm is it in Zürich?"}
ARGUMENTS = '{"town": "Zürich", "days": 3}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
MARKED = f"[TOOL_CALLS]get_weather[ARGS]{ARGUMENTS}"
OUTPUTS = {
    "qwen": f"I think < 3 <tools>.\n{CALL}{CALL}",
    "mistral_named": f"Looking. {MARKED}{MARKED}",
}


@pytest.fixture(scope="module", params=sorted(OUTPUTS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = save_tiny_model(tmp_path_factory.mktemp("tools"), "gpt2-long", 0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("[TOOL_CALLS]"), AddedToken("[ARGS]")]}
    )
    tokenizer.chat_template = {
        "default": FAMILIES[family].source,
        "thinking": FAMILIES["thinking"].source,
    }
    tokenizer.save_pretrained(directory)
    flags = ("--model-name", "tiny", "--http-listen", "127.0.0.1:0")
    with ServerProcess(directory, tmp_path_factory.mktemp("data"), *flags) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    base_url = f"{server.http_url}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as connected:
        yield connected


def test_calls_of_a_chat_are_the_same_whole_and_streamed(
    server: ServerProcess, client: openai.OpenAI, family: str
) -> None:
    output = OUTPUTS[family]
    settings: dict[str, Any] = {"model": "tiny", "messages": [QUESTION], "tools": TOOLS}
    settings["extra_body"] = {"whence": {"forced": output}}
    whole = client.chat.completions.create(**settings).choices[0]
    chunks = [c.choices[0] for c in client.chat.completions.create(**settings, stream=True)]

    calls = whole.message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["get_weather"] * 2
    assert [json.loads(call.function.arguments) for call in calls] == [json.loads(ARGUMENTS)] * 2
    spoken = output.split("<tool_call>")[0].split("[TOOL_CALLS]")[0]
    assert whole.message.content == spoken.strip()
    assert "".join(chunk.delta.content or "" for chunk in chunks) == spoken
    streamed = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [call.function for call in streamed] == [
        ChoiceDeltaToolCallFunction(**call.function.model_dump()) for call in calls
    ]
    assert [call.index for call in streamed] == [0, 1]
    assert all(call.id for call in streamed)
    assert whole.finish_reason == chunks[-1].finish_reason
    # What the model wrote stays whole on record.
    with Client(server.target) as recorded:
        newest = next(recorded.generations.list())
        record = recorded.generations.get(newest.generation_id)
    assert record.finished.sequences[0].tool_calls[1].call.arguments_json == ARGUMENTS


def test_calls_and_results_reach_the_template_as_over_grpc(
    server: ServerProcess, client: openai.OpenAI
) -> None:
    call = {"id": "abcdefghi", "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": ARGUMENTS}
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "21 °C"},
    ]
    client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, max_tokens=1, temperature=0
    )
    items = [
        QUESTION,
        {
            "type": "function_call",
            "call_id": "abcdefghi",
            "name": "get_weather",
            "arguments": ARGUMENTS,
        },
        {"type": "function_call_output", "call_id": "abcdefghi", "output": "21 °C"},
    ]
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    client.responses.create(
        model="tiny", input=items, tools=flat, max_output_tokens=1, temperature=0
    )
    with Client(server.target) as recorded:
        of_response, of_chat = (
            recorded.generations.get(summary.generation_id).started.prompt
            for _, summary in zip(range(2), recorded.generations.list(), strict=False)
        )
        options = {"messages": messages, "tools": TOOLS, "max_new_tokens": 1}
        with recorded.generate(**options) as generation:
            list(generation)
    assert of_chat == of_response == generation.started.prompt
    assert "21 °C" in of_chat


def test_calls_of_a_response_are_items(client: openai.OpenAI, family: str) -> None:
    flat = [{"type": "function", **tool["function"]} for tool in TOOLS]
    settings: dict[str, Any] = {"model": "tiny", "input": "How warm?", "tools": flat}
    settings["extra_body"] = {"whence": {"forced": OUTPUTS[family]}}
    whole = client.responses.create(**settings)
    events = list(client.responses.create(**settings, stream=True))
    streamed = events[-1].response

    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    for item, twin in zip(whole.output[1:], streamed.output[1:], strict=True):
        assert (item.name, item.arguments) == (twin.name, twin.arguments)
        assert json.loads(item.arguments) == json.loads(ARGUMENTS)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert deltas == [item.arguments for item in whole.output[1:]]


@pytest.mark.parametrize("begins", [True, False], ids=["prompt-begins", "output-begins"])
def test_reasoning_is_told_apart_whole_and_streamed(client: openai.OpenAI, begins: bool) -> None:
    output = f"{'' if begins else '<think>'}\nIt is summer.\n</think>\n\nWarm."
    own = {"forced": output, "template_name": "thinking"}
    if begins:
        own["template_arguments"] = {"open_thinking": True}
    settings: dict[str, Any] = {"model": "tiny", "extra_body": {"whence": own}}
    chat: dict[str, Any] = {**settings, "messages": [QUESTION], "logprobs": True}
    whole = client.chat.completions.create(**chat)
    deltas = [c.choices[0].delta for c in client.chat.completions.create(**chat, stream=True)]
    response = client.responses.create(input="How warm?", **settings)
    events = list(client.responses.create(input="How warm?", stream=True, **settings))

    message = whole.choices[0].message
    assert message.model_extra == {"reasoning_content": "It is summer."}
    assert message.content == "Warm."
    told = [(delta.model_extra or {}).get("reasoning_content", "") for delta in deltas]
    assert "".join(told) == "It is summer."
    assert len([text for text in told if text]) > 1
    assert "".join(delta.content or "" for delta in deltas) == "Warm."
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    num_reasoning = whole.usage.completion_tokens_details.reasoning_tokens
    assert num_reasoning is not None
    assert len("It is summer.") < num_reasoning < whole.usage.completion_tokens
    for item in (response.output[0], events[-1].response.output[0]):
        assert item.type == "reasoning"
        assert [part.text for part in item.content or ()] == ["It is summer."]
    assert response.output_text == events[-1].response.output_text == "Warm."
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == num_reasoning
    parts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(parts) == "It is summer."


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "function"}, 3]}, "tools[1]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "messages[0]"),
    ],
)
def test_what_is_not_offered_is_named(
    client: openai.OpenAI, change: dict[str, Any], parameter: str
) -> None:
    settings: dict[str, Any] = {"model": "tiny", "messages": [QUESTION], "tools": TOOLS}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**(settings | change))
    assert caught.value.param is not None
    assert caught.value.param.startswith(parameter)
