"""Constrained generations from a client's call to the record, on a running server."""

import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from jsonschema import Draft202012Validator
from rpc_errors import failure_of
from schema_kinds import KINDS, REFUSED
from server_process import ServerProcess
from whence_command import Done, run_whence

from whence import Client, Generation, InvalidRequestError, NotFoundError
from whence.generation import FinishReason
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc as services

RECORD = KINDS["record"].schema
TAIL = {"max_new_tokens": 120, "seed": 11, "temperature": 2.0, "top_k": 0}


def generate(server: ServerProcess, **options: Any) -> Generation:
    with Client(server.target) as client:
        generation = client.generate("def f(x):", **options)
        for _ in generation:
            pass
        return generation


class Person:
    """A class with a schema, as pydantic's models have it."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return RECORD


@pytest.mark.parametrize(
    "schema", [RECORD, json.dumps(RECORD), Person], ids=["dict", "text", "model"]
)
def test_samples_validate_or_are_said_to_be_cut(server: ServerProcess, schema: Any) -> None:
    made = generate(server, json_schema=schema, n=4, **TAIL)
    validator = Draft202012Validator(RECORD)
    for sequence in made.sequences:
        try:
            valid = validator.is_valid(json.loads(sequence.text))
        except ValueError:
            valid = False
        assert sequence.constraint_complete == valid, sequence.text
        if sequence.finish_reason is FinishReason.END_OF_SEQUENCE:
            assert valid
    assert any(sequence.constraint_complete for sequence in made.sequences)


def test_the_record_has_the_constraint_and_its_effect_on_each_step(server: ServerProcess) -> None:
    with Client(server.target) as client:
        generation = client.generate("def f(x):", json_schema=RECORD, **TAIL)
        tokens = list(generation)
        summaries = [token.summary for token in tokens]
    started = generation.started
    assert started is not None
    assert json.loads(started.effective_decoding.constraint.json_schema) == RECORD
    assert re.fullmatch(r"llguidance/\d+\.\d+\.\d+", started.constraint_engine)
    assert started.processor_names[0] == "constraint"
    for token, summary in zip(tokens, summaries, strict=True):
        effect = token.constraint
        assert effect is not None
        # The model's own first choice is the first candidate, removed or not.
        assert token.candidates[0].logprob == max(one.logprob for one in token.candidates)
        if effect.num_kept == 1:
            assert "forced by the constraint" in summary
        elif effect.removed_mass >= 0.0005:
            assert f"constraint took {effect.removed_mass:.1%}" in summary
    removed = [
        one for token in tokens for one in token.candidates if one.sampling_logprob == -float("inf")
    ]
    assert removed, "a tiny model's first choice is hardly ever JSON"
    assert any(token.constraint and token.constraint.num_kept == 1 for token in tokens)


def test_beams_and_greedy_satisfy_the_constraint(server: ServerProcess) -> None:
    options = {"regex": "(ab|cd)+e", "max_new_tokens": 24}
    for strategy in ({"greedy": True}, {"num_beams": 4, "n": 2}):
        for sequence in generate(server, **options, **strategy).sequences:
            complete = bool(re.fullmatch(options["regex"], sequence.text))
            assert sequence.constraint_complete == complete


def test_a_text_that_a_stop_string_cuts_is_judged_where_it_was_cut(server: ServerProcess) -> None:
    # Each character is a token of its own: the stop string begins at the beginning of a token. The
    # minimum keeps the text from ending before the comma.
    options = {
        "regex": "(0|1)(x|y)(,(0|1)(x|y))*",
        "greedy": True,
        "max_new_tokens": 30,
        "min_new_tokens": 8,
    }
    whole = generate(server, stop=[","], **options).sequences[0]
    assert (whole.finish_reason, whole.constraint_complete) == (FinishReason.STOP, True)
    cut = generate(server, stop=["x", "y"], **options).sequences[0]
    assert (cut.finish_reason, cut.constraint_complete) == (FinishReason.STOP, False)


@pytest.mark.parametrize(
    ("constraint", "field", "description"),
    [
        (g.Constraint(), "decoding.constraint", "one of `json_schema`, `regex` or `grammar`"),
        (
            g.Constraint(json_schema='{"type": }'),
            "decoding.constraint.json_schema",
            "is no JSON: Expecting value at line 1, column 10",
        ),
        (
            g.Constraint(json_schema=json.dumps(REFUSED["/items/unevaluatedProperties"])),
            "decoding.constraint.json_schema",
            "/items/unevaluatedProperties: the keyword 'unevaluatedProperties' is not supported",
        ),
        (g.Constraint(regex="a(b"), "decoding.constraint.regex", "unclosed group at character 2"),
        (
            g.Constraint(grammar=g.Grammar(text="start: foo")),
            "decoding.constraint.grammar.text",
            'unknown name: "foo" at line 1, column 8',
        ),
        (
            g.Constraint(grammar=g.Grammar(text="x", syntax=9)),  # type: ignore[arg-type]
            "decoding.constraint.grammar.syntax",
            "is no GrammarSyntax value",
        ),
        (
            g.Constraint(regex="a" * 70_000),
            "decoding.constraint.regex",
            "has 70000 bytes; this server takes at most 65536",
        ),
    ],
)
def test_a_wrong_constraint_is_refused_with_its_place_and_leaves_no_record(
    server: ServerProcess,
    channel: grpc.Channel,
    constraint: g.Constraint,
    field: str,
    description: str,
) -> None:
    generation_id = "9f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10"
    decoding = g.Decoding(greedy=g.Greedy(), constraint=constraint)
    request = g.GenerateRequest(prompt="a", decoding=decoding, generation_id=generation_id)
    with pytest.raises(grpc.RpcError) as raised:
        list(services.GenerationServiceStub(channel).Generate(request))
    failure = failure_of(raised.value)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert description in failure.fields[field]
    with Client(server.target) as client, pytest.raises(NotFoundError):
        client.generations.get(generation_id)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"forced": "x"}, "decoding.constraint"),
        ({"ignore_eos": True}, "decoding.ignore_eos"),
    ],
)
def test_what_does_not_go_with_a_constraint_is_refused_by_name(
    server: ServerProcess, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        generate(server, regex="a", **options)
    assert field in str(raised.value)


def test_a_minimum_that_the_language_cannot_reach_fails_with_the_reason(
    server: ServerProcess,
) -> None:
    with pytest.raises(Exception, match="complete and nothing may follow, but min_new_tokens"):
        generate(server, regex="ab", greedy=True, min_new_tokens=9, max_new_tokens=10)


def run_command(server: ServerProcess, *arguments: str) -> Done:
    return run_whence("generate", "--target", server.target, "def", *arguments)


def test_the_command_takes_each_form(server: ServerProcess, tmp_path: Path) -> None:
    schema, lark, ebnf = tmp_path / "s.json", tmp_path / "g.lark", tmp_path / "g.gbnf"
    schema.write_text(json.dumps({"enum": ["red", "blue"]}))
    lark.write_text('start: "x" /[0-9]/')
    ebnf.write_text('root ::= "x" [0-9]')
    common = ("--greedy", "--max-new-tokens", "20")
    for flags, pattern in (
        (("--json-schema", str(schema)), '"(red|blue)"'),
        (("--json-schema", '{"const": 17}'), "17"),
        (("--regex", "a{3}"), "aaa"),
        (("--grammar", str(lark)), "x[0-9]"),
        (("--grammar", str(ebnf), "--grammar-syntax", "ebnf"), "x[0-9]"),
    ):
        shown = run_command(server, *common, *flags)
        assert shown.returncode == 0, shown.stderr
        assert re.fullmatch(pattern, shown.stdout.strip())
        assert "cut off" not in shown.stderr
    cut = run_command(server, "--greedy", "--max-new-tokens", "2", "--regex", "[ab]{200}")
    assert "warning: sequence 0 is cut off" in cut.stderr
    as_json = run_command(server, *common, "--regex", "a{3}", "--json").stdout.splitlines()
    started, *tokens, finished = map(json.loads, as_json)
    assert started["decoding"]["constraint"] == {"regex": "a{3}"}
    assert tokens[0]["processors"][0]["name"] == "constraint"
    assert finished["sequences"][0]["constraint_complete"] is True
    wrong = run_command(server, "--regex", "a", "--json-schema", "{}")
    assert wrong.returncode == 2
    assert "`json_schema` and `regex` contradict" in wrong.stderr
