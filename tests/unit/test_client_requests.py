"""Keyword arguments are converted to requests, or refused by name."""

import uuid
from datetime import UTC, datetime

import pytest

from whence.options import GenerateOptions
from whence.requests import generate_request, make_filter
from whence.v1 import generation_pb2 as pb

SAMPLING = {
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.75,
    "min_p": 0.125,
    "typical_p": 0.25,
    "epsilon_cutoff": 0.0625,
    "eta_cutoff": 0.03125,
    "seed": 2**64 - 1,
}
BEAMS = {"num_beams": 3, "length_penalty": 0.5, "early_stopping": "never"}
REST = {
    "model": "m",
    "adapter": "tone",
    "upstream_parameters": {"min_tokens_ratio": 1},
    "add_special_tokens": False,
    "max_new_tokens": 5,
    "min_new_tokens": 1,
    "stop": ["a", "b"],
    "stop_token_ids": [1, 2],
    "ignore_eos": True,
    "n": 2,
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 3,
    "logit_bias": {7: -1.0},
    "bad_words": "w",
    "detail": "internals",
    "num_candidates": 0,
    "trace_prompt": True,
    "logprob_token_ids": [3, 1],
    "content": "tokens",
    "generation_id": uuid.UUID(int=1),
    "labels": {"k": "v"},
    "disconnect_grace_s": 1.5,
    "max_duration_s": 60,
}


CONSTRAINTS = [
    {"json_schema": {"type": "object", "properties": {"b": {}, "a": {}}}},
    {"regex": "a+"},
    {"grammar": 'root ::= "a"', "grammar_syntax": "ebnf"},
]
"""Options of which each request takes one line."""


def given(message) -> set[str]:
    return {descriptor.name for descriptor, _ in message.ListFields()}


def test_every_field_of_the_contract_can_be_set():
    sampled = generate_request("p", {**SAMPLING, **REST})
    beams = generate_request([1, 2], {**BEAMS, **REST})
    forced = generate_request("p", {"forced": [3]})
    chat = generate_request(
        None,
        {
            "messages": [{"role": "user", "content": "hi"}],
            "template_arguments": {"tools": [], "depth": 2, "on": True, "none": None},
            "template_name": "rag",
            "tools": [{"type": "function"}],
            "greedy": True,
        },
    )
    constrained = [generate_request("p", options) for options in CONSTRAINTS]
    requests = (sampled, beams, forced, chat, *constrained)

    def names(kind) -> set[str]:
        return {descriptor.name for descriptor in kind.DESCRIPTOR.fields}

    assert set().union(*map(given, requests)) == names(pb.GenerateRequest)
    assert set().union(*(given(r.decoding) for r in requests)) == names(pb.Decoding)
    assert given(sampled.decoding.sample) == names(pb.Sample)
    assert given(beams.decoding.beam_search) == names(pb.BeamSearch)
    assert given(sampled.trace) == names(pb.TraceOptions)
    constraints = [request.decoding.constraint for request in constrained]
    assert set().union(*map(given, constraints)) == names(pb.Constraint)
    assert given(constraints[-1].grammar) == names(pb.Grammar)
    # The Struct is for clients that have no JSON text.
    assert given(chat.chat) == names(pb.ChatInput) - {"template_arguments"}


def test_every_option_is_used():
    elsewhere = {"timeout_s", "metadata"}  # of the calls, not of the request
    constraints = {name for options in CONSTRAINTS for name in options}
    used = {*SAMPLING, *BEAMS, *REST, *constraints, "greedy", "sample", "forced", "messages"}
    for_chat = {"template_arguments", "template_name", "tools", "continue_final_message"}
    assert used | elsewhere | for_chat == set(GenerateOptions.__annotations__)


def test_a_schema_is_json_in_its_own_order_whatever_gives_it():
    class Model:
        @classmethod
        def model_json_schema(cls):
            return schema

    schema, text = CONSTRAINTS[0]["json_schema"], '{"type":"object","properties":{"b":{},"a":{}}}'
    for value in (schema, text, Model):
        request = generate_request("p", {"json_schema": value})
        assert request.decoding.constraint.json_schema == text


def test_template_arguments_are_json_in_their_own_order():
    arguments = {
        "z": 1,
        "a": [2**60, -0.5, 1.0, None, True, "ü\n", ()],
        "m": {"y": {}, "b": 2, "a": "</s>"},
    }
    chat = generate_request(None, {"messages": [], "template_arguments": arguments}).chat
    assert chat.template_arguments_json == (
        '{"z":1,"a":[1152921504606846976,-0.5,1.0,null,true,"ü\\n",[]],'
        '"m":{"y":{},"b":2,"a":"</s>"}}'
    )
    assert not chat.HasField("template_arguments")


def test_values_arrive_as_given():
    request = generate_request("p", {**SAMPLING, **REST})
    assert request.generation_id == str(uuid.UUID(int=1))
    for option, value in SAMPLING.items():
        assert getattr(request.decoding.sample, option) == value
    assert request.decoding.HasField("add_special_tokens")
    assert request.trace.HasField("num_candidates")
    assert list(request.trace.logprob_token_ids) == [3, 1]
    assert request.trace.content == pb.CONTENT_POLICY_TOKENS
    assert request.decoding.num_return_sequences == 2
    assert list(request.decoding.bad_words) == ["w"]
    assert request.disconnect_grace.ToMilliseconds() == 1500
    assert request.max_duration.seconds == 60


def test_what_is_left_out_is_left_to_the_server():
    request = generate_request("p", {"temperature": None, "greedy": False})
    assert given(request) == {"prompt", "generation_id", "disconnect_grace"}
    assert request.disconnect_grace.seconds == 60
    assert uuid.UUID(request.generation_id).version == 4


def test_an_empty_prompt_is_the_servers_to_refuse():
    assert generate_request("", {}).WhichOneof("input") == "prompt"
    assert generate_request([], {}).WhichOneof("input") == "tokens"
    assert generate_request(None, {"messages": []}).WhichOneof("input") == "chat"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"greedy": True, "top_k": 3}, ("`greedy`", "`top_k`")),
        ({"greedy": True, "sample": True}, ("`greedy`", "`sample`")),
        ({"temperature": 0.0, "num_beams": 2}, ("`temperature`", "`num_beams`")),
        ({"seed": 0, "forced": ""}, ("`seed`", "`forced`")),
        ({"early_stopping": "never", "forced": "x"}, ("`early_stopping`", "`forced`")),
        ({"template_arguments": {}}, ("`template_arguments`", "`messages`")),
        ({"template_name": "rag"}, ("`template_name`", "`messages`")),
        ({"regex": "a", "grammar": "start:"}, ("`regex`", "`grammar`")),
        ({"grammar_syntax": "lark"}, ("`grammar_syntax`", "`grammar`")),
    ],
)
def test_contradictions_name_both_options(options, named):
    with pytest.raises(ValueError, match="give") as raised:
        generate_request("p", options)
    assert all(name in str(raised.value) for name in named)


@pytest.mark.parametrize(
    ("prompt", "options", "kind", "message"),
    [
        (None, {}, TypeError, "nothing to continue"),
        ("p", {"messages": []}, TypeError, "`prompt` and `messages` contradict"),
        ("p", {"temprature": 1.0}, TypeError, "did you mean 'temperature'"),
        ("a\udc80", {}, ValueError, r"prompt: character 1 is the lone surrogate '\\udc80'"),
        ("p", {"stop": ["a", "\ud800"]}, ValueError, r"stop\[1\]: character 0"),
        ("p", {"labels": {"k": "\ud800"}}, ValueError, r"labels\['k'\]"),
        ("p", {"labels": {"k": 1}}, TypeError, r"labels\['k'\] must be text"),
        ("p", {"labels": ["k"]}, TypeError, "labels must be a mapping"),
        (b"bytes", {}, TypeError, "not bytes"),
        ([-1], {}, ValueError, r"prompt: .*-1"),
        (["a"], {}, TypeError, "prompt: "),
        ("p", {"max_new_tokens": -1}, ValueError, "max_new_tokens: .*-1"),
        ("p", {"max_new_tokens": "5"}, TypeError, "max_new_tokens: "),
        ("p", {"seed": 2**64}, ValueError, "seed: "),
        ("p", {"stop_token_ids": [2**32]}, ValueError, "stop_token_ids: "),
        ("p", {"logprob_token_ids": [-1]}, ValueError, "logprob_token_ids: "),
        ("p", {"logprob_token_ids": 5}, TypeError, "logprob_token_ids: "),
        ("p", {"logit_bias": {-1: 1.0}}, ValueError, "logit_bias: "),
        ("p", {"stop": 5}, TypeError, "stop: "),
        ("p", {"detail": "all"}, ValueError, "'tokens', 'decisions', 'internals'"),
        ("p", {"num_beams": 2, "early_stopping": True}, ValueError, "early_stopping is True"),
        ("p", {"max_duration_s": float("nan")}, ValueError, "max_duration_s: "),
        ("p", {"disconnect_grace_s": float("inf")}, ValueError, "disconnect_grace_s: "),
        (None, {"messages": [{"role": "user"}]}, ValueError, r"messages\[0\]"),
        (None, {"messages": [{"role": "user", "content": 1}]}, TypeError, r"\[0\].content"),
        (
            None,
            {"messages": [], "template_arguments": {"a": [1, float("nan")]}},
            ValueError,
            r"template_arguments\['a'\]\[1\] is nan, which is not a JSON number",
        ),
        (
            None,
            {"messages": [], "template_arguments": {"a": object()}},
            TypeError,
            r"template_arguments\['a'\] is of type object",
        ),
        (None, {"messages": [], "template_arguments": {"a": b"x"}}, TypeError, "of type bytes"),
        (
            None,
            {"messages": [], "template_arguments": {"a": {1: 2}}},
            TypeError,
            r"template_arguments\['a'\]: a key must be text",
        ),
        (None, {"messages": [], "template_arguments": []}, TypeError, "must be a mapping"),
        ("p", {"json_schema": 5}, TypeError, "json_schema must be a mapping, not int"),
        ("p", {"json_schema": {"a": {1}}}, TypeError, r"json_schema\['a'\] is of type set"),
        ("p", {"regex": 5}, TypeError, "regex must be text, not int"),
        ("p", {"grammar": "x", "grammar_syntax": "bnf"}, ValueError, "'lark', 'ebnf'"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused_by_name(prompt, options, kind, message):
    with pytest.raises(kind, match=message):
        generate_request(prompt, options)


def test_filters_become_fields_of_the_contract():
    time = datetime(2026, 1, 2, tzinfo=UTC)
    wanted = make_filter({"start_after": time, "model": "m", "labels": {"k": "v"}})
    assert wanted.start_after.ToDatetime(UTC) == time
    assert (wanted.model, dict(wanted.labels)) == ("m", {"k": "v"})
    assert not wanted.HasField("start_before")
    with pytest.raises(ValueError, match=r"start_before: .* no time zone"):
        make_filter({"start_before": time.replace(tzinfo=None)})
    with pytest.raises(TypeError, match="start_after must be a datetime"):
        make_filter({"start_after": "yesterday"})
    with pytest.raises(TypeError, match="did you mean 'labels'"):
        make_filter({"label": {}})
