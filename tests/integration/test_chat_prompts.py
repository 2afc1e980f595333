"""Chats over gRPC: the prompt is transformers' own, and no chat harms another."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import struct_pb2
from server_process import ServerProcess
from tiny_models import save_tiny_model
from transformers import AutoTokenizer

import whence
from whence.cli.main import main
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

SHOW = """{%- if messages[-1].content == 'loop' %}
{%- for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}
{%- for name, value in (options or {}).items() %}{{ name }}={{ value }},{% endfor %}
{{- n }} {{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
TEMPLATES = {"default": SHOW, "tool_use": "TOOLS " + SHOW, "rag": "RAG " + SHOW}
OPTIONS = {"zeta": 1, "alpha": 512, "mid": [1.0, 2.5, {"b": 3, "a": None}], "ü": True}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"maximum": 14, "a": 0.5}}}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_model(tmp_path_factory.mktemp("named"), "gpt2", 0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    """Two processes that hash differently."""
    made = [
        ServerProcess(model, tmp_path_factory.mktemp("data"), environment={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    with made[0], made[1]:
        yield made


@pytest.fixture(scope="module")
def stub(servers: list[ServerProcess]) -> Iterator[generation_pb2_grpc.GenerationServiceStub]:
    with grpc.insecure_channel(servers[0].target) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


def request(content: str = "Hi", **chat: Any) -> g.GenerateRequest:
    return g.GenerateRequest(
        chat=g.ChatInput(messages=[g.ChatMessage(role="user", content=content)], **chat),
        decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=1),
    )


def started(stub: generation_pb2_grpc.GenerationServiceStub, wanted: g.GenerateRequest) -> Any:
    (first, *_) = (response.event for response in stub.Generate(wanted))
    return first.started


def theirs(model: Path, content: str = "Hi", **options: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [{"role": "user", "content": content}]
    options = {"add_generation_prompt": True, **options}
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_two_servers_make_the_prompt_that_transformers_makes(
    model: Path, servers: list[ServerProcess]
) -> None:
    arguments = {"options": OPTIONS, "n": 2**60, "tools": TOOLS}
    prompts, digests = set(), set()
    for server in servers:
        with whence.Client(server.target) as client:
            generation = client.generate(
                messages=[{"role": "user", "content": "Hi"}],
                template_arguments=arguments,
                max_new_tokens=1,
                greedy=True,
                labels={"b": "1", "a": "2"},
                generation_id="6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10",
            )
            generation.result()
            assert generation.started is not None
            prompts.add(generation.started.prompt)
            digests.add(generation.started.request_digest)
    assert prompts == {theirs(model, **arguments)}
    assert len(digests) == 1


def test_an_old_clients_struct_is_read_alike_everywhere(
    model: Path, servers: list[ServerProcess]
) -> None:
    given = struct_pb2.Struct()
    given.update({"options": OPTIONS, "n": 7, "tools": TOOLS})
    wanted, seen = request(template_arguments=given), set()
    for server in servers:
        with grpc.insecure_channel(server.target) as channel:
            it = started(generation_pb2_grpc.GenerationServiceStub(channel), wanted)
            seen.add((it.prompt, it.request_digest))
    as_read = json.loads(json.dumps({"options": OPTIONS, "tools": TOOLS}, sort_keys=True))
    as_read["options"]["mid"][0] = 1
    ((prompt, _),) = seen
    assert prompt == theirs(model, n=7, **as_read)
    assert "alpha=512,mid=[1, 2.5" in prompt


@pytest.mark.parametrize("name", ["", "default", "tool_use", "rag"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_templates_are_chosen_by_name_or_by_tools(
    model: Path, stub: generation_pb2_grpc.GenerationServiceStub, name: str, tools: Any
) -> None:
    text = json.dumps({"tools": tools})
    it = started(stub, request(template_arguments_json=text, template_name=name))
    by_name = {"chat_template": name} if name else {}
    assert it.prompt == theirs(model, tools=tools, **by_name)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_the_names_are_listed(
    servers: list[ServerProcess], stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    with grpc.insecure_channel(servers[0].target) as channel:
        models = model_pb2_grpc.ModelServiceStub(channel)
        listed = models.GetModel(model_pb2.GetModelRequest()).model.chat_templates
    assert list(listed) == sorted(TEMPLATES)
    code, details = refused(lambda: started(stub, request(template_name="other")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == (
        "chat.template_name: is 'other'; the model's chat templates are "
        "'default', 'rag', 'tool_use'"
    )


def test_the_command_chooses_templates_and_gives_arguments(
    model: Path, servers: list[ServerProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"n": 12, "options": {"z": 1, "a": 2}}
    command = ["generate", "Hi", "--chat", "--target", servers[0].target, "--greedy", "--json"]
    command += ["--max-new-tokens", "1", "--template-name", "rag"]
    assert main([*command, "--template-arguments", json.dumps(arguments)]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    expected = theirs(model, chat_template="rag", **arguments)
    ids = AutoTokenizer.from_pretrained(model)(expected, add_special_tokens=False)["input_ids"]
    assert first["prompt_token_ids"] == ids
    for wrong in ("[]", "{", "3"):
        with pytest.raises(SystemExit):
            main([*command, "--template-arguments", wrong])


def test_the_last_message_is_continued(
    model: Path, stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    it = started(stub, request("I th", template_arguments_json='{"continue_final_message":true}'))
    expected = theirs(model, "I th", continue_final_message=True, add_generation_prompt=False)
    assert it.prompt == expected
    assert it.prompt.endswith("<user>I th")


def test_a_retry_joins_whatever_order_its_maps_have(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    generation_id = "7f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d11"
    seen = set()
    for order in (("a", "b", "c"), ("c", "a", "b")):
        wanted = request()
        wanted.generation_id = generation_id
        for key in order:
            wanted.labels[key] = key
            wanted.decoding.logit_bias[ord(key)] = 0.5
            wanted.chat.template_arguments[key] = 1
        seen.add(started(stub, wanted).start_time.ToNanoseconds())
    assert len(seen) == 1


def test_other_requests_are_served_while_a_template_loops(
    servers: list[ServerProcess], stub: generation_pb2_grpc.GenerationServiceStub
) -> None:
    code_and_details: list[Any] = []
    looping = threading.Thread(
        target=lambda: code_and_details.append(refused(lambda: started(stub, request("loop"))))
    )
    looping.start()
    num_served = 0
    while looping.is_alive():
        assert started(stub, request("Hi")).prompt
        num_served += 1
    looping.join()
    ((code, details),) = code_and_details
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "chat template does not end" in details
    assert num_served > 3


def test_a_text_that_cannot_fit_is_refused_untokenized(
    stub: generation_pb2_grpc.GenerationServiceStub,
) -> None:
    long = "word " * 700_000
    for wanted, field in (
        (g.GenerateRequest(prompt=long), "prompt"),
        (request(long), "chat"),
        (
            g.GenerateRequest(prompt="x", decoding=g.Decoding(forced=g.Forced(text=long))),
            "decoding.forced.text",
        ),
    ):
        code, details = refused(lambda wanted=wanted: started(stub, wanted))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(f"{field}: has 3500")
        assert "a token stands for at most" in details


def test_a_server_drains_at_once_while_a_template_loops(model: Path, tmp_path: Path) -> None:
    with ServerProcess(model, tmp_path) as server, grpc.insecure_channel(server.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        started(stub, request("Hi"))
        outcome: list[Any] = []
        looping = threading.Thread(
            target=lambda: outcome.append(refused(lambda: started(stub, request("loop"))))
        )
        looping.start()
        children = psutil.Process(server.pid).children()
        busy = [c for c in children if "text_worker" in " ".join(c.cmdline())]
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        looping.join()
        ((code, _),) = outcome
        assert code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert psutil.wait_procs(busy, timeout=60)[1] == []
