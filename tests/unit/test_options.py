"""The declared options against the contract, and against the dataclasses beside them."""

import dataclasses

import pytest

from whence.options import OPTIONS as CLIENT_OPTIONS
from whence.v1 import generation_pb2 as g
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    TRACE_OPTIONS,
    DecodingRequest,
    GenerationDefaults,
    TraceRequest,
)

MESSAGES = {
    "decoding": g.Decoding,
    "decoding.sample": g.Sample,
    "decoding.beam_search": g.BeamSearch,
    "trace": g.TraceOptions,
}
STRATEGIES = {field.name for field in g.Decoding.DESCRIPTOR.oneofs_by_name["strategy"].fields}


@pytest.mark.parametrize("message", MESSAGES)
def test_every_field_of_the_contract_is_declared_once(message: str) -> None:
    declared = [
        option.name for option in (*DECODING_OPTIONS, *TRACE_OPTIONS) if option.message == message
    ]
    fields = {field.name for field in MESSAGES[message].DESCRIPTOR.fields} - STRATEGIES
    assert sorted(declared) == sorted(fields)


def test_a_request_has_a_field_for_every_option() -> None:
    decoding = {field.name for field in dataclasses.fields(DecodingRequest)}
    trace = {field.name for field in dataclasses.fields(TraceRequest)}
    # No options of the contract: a default of OpenAI's API, and what a branch has of its parent.
    others = {"strategy", "forced", "fills_context", "forced_prefix", "first_draw_sequence"}
    assert decoding - others == {option.name for option in DECODING_OPTIONS}
    assert trace == {option.name for option in TRACE_OPTIONS}


def test_what_a_generation_config_sets_has_a_default() -> None:
    defaults = {field.name for field in dataclasses.fields(GenerationDefaults)}
    assert {option.name for option in DECODING_OPTIONS if option.configured_for} <= defaults


def test_the_client_sets_every_option() -> None:
    server = {option.path for option in (*DECODING_OPTIONS, *TRACE_OPTIONS)}
    strategies = {"decoding.greedy", "decoding.sample", "decoding.forced"}
    # A constraint's forms are options of their own.
    constraint = {
        f"decoding.constraint.{form}"
        for form in ("json_schema", "regex", "grammar.text", "grammar.syntax")
    }
    wanted = (server - {"decoding.constraint"}) | strategies | constraint
    assert {option.path for option in CLIENT_OPTIONS.values()} == wanted
