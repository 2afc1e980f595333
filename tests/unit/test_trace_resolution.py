"""Parts of a trace that are granted, by the abilities of the model."""

import dataclasses

import pytest

from whence_server.domain.content import ContentPolicy
from whence_server.domain.decoding import (
    GenerationDefaults,
    TraceDetail,
    TraceRequest,
)
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.model import Environment, InternalsInfo, ModelInfo, TextFiles
from whence_server.generation.resolve import resolve_trace

MODEL = ModelInfo(
    name="tiny",
    architecture="GPT2LMHeadModel",
    num_parameters=10,
    num_layers=2,
    vocabulary_size=64,
    max_context_length=128,
    model_digest="",
    tokenizer_digest="",
    weights_digest="",
    files=(),
    loaded_files=(),
    batched=True,
    environment=Environment("", "", "", "", "", 1, ""),
    defaults=GenerationDefaults(),
    text=TextFiles("{}", None, {}),
)
NO_SOURCES = {"sources": "no attention"}
NO_LAYERS = {"layers": "no layers"}


@pytest.mark.parametrize(
    ("missing", "num_candidates", "granted", "told"),
    [
        ({}, None, TraceDetail.INTERNALS, set()),
        (NO_SOURCES, None, TraceDetail.INTERNALS, {"sources"}),
        (NO_LAYERS, 4, TraceDetail.INTERNALS, {"layers"}),
        ({}, 0, TraceDetail.INTERNALS, {"layers"}),
        (NO_SOURCES | NO_LAYERS, None, TraceDetail.DECISIONS, {"sources", "layers"}),
        (NO_SOURCES, 0, TraceDetail.DECISIONS, {"sources", "layers"}),
    ],
)
def test_internals_are_granted_where_the_model_gives_a_part(
    missing: dict[str, str],
    num_candidates: int | None,
    granted: TraceDetail,
    told: set[str],
) -> None:
    model = dataclasses.replace(MODEL, internals=InternalsInfo("method", missing))
    request = TraceRequest(TraceDetail.INTERNALS, num_candidates)
    trace, unavailable = resolve_trace(request, model, Limits())
    assert trace.detail is granted
    assert unavailable.keys() == told
    for part, reason in missing.items():
        assert unavailable[part] == reason


@pytest.mark.parametrize("detail", [None, TraceDetail.TOKENS, TraceDetail.DECISIONS])
def test_what_was_not_asked_for_is_not_missed(detail: TraceDetail | None) -> None:
    model = dataclasses.replace(MODEL, internals=InternalsInfo("", NO_SOURCES | NO_LAYERS))
    trace, unavailable = resolve_trace(TraceRequest(detail), model, Limits())
    assert trace.detail is (detail or TraceDetail.DECISIONS)
    assert unavailable == {}


def test_ids_are_granted_beside_the_candidates_and_dropped_with_them() -> None:
    request = TraceRequest(num_candidates=3, logprob_token_ids=(63, 0))
    trace, _ = resolve_trace(request, MODEL, Limits())
    assert (trace.num_candidates, trace.logprob_token_ids) == (3, (63, 0))
    bare, _ = resolve_trace(
        dataclasses.replace(request, detail=TraceDetail.TOKENS), MODEL, Limits()
    )
    assert (bare.num_candidates, bare.logprob_token_ids) == (0, ())


@pytest.mark.parametrize("detail", TraceDetail)
@pytest.mark.parametrize(
    ("ids", "faults"),
    [
        ((1, 64), {"trace.logprob_token_ids[1]": "is 64; ids go up to 63"}),
        ((5, 6, 5), {"trace.logprob_token_ids[2]": "is 5, as is entry 0: name it once"}),
        (
            tuple(range(129)),
            {"trace.logprob_token_ids": "has 129 ids; this server takes at most 128"},
        ),
    ],
)
def test_ids_that_cannot_be_traced_are_refused_by_field(
    detail: TraceDetail, ids: tuple[int, ...], faults: dict[str, str]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolve_trace(TraceRequest(detail, logprob_token_ids=ids), MODEL, Limits())
    assert {fault.field: fault.description for fault in caught.value.violations} == faults


@pytest.mark.parametrize("most", ContentPolicy)
@pytest.mark.parametrize("asked", [None, *ContentPolicy])
def test_content_can_be_lowered_and_never_raised(
    most: ContentPolicy, asked: ContentPolicy | None
) -> None:
    request, limits = TraceRequest(content=asked), Limits(content=most)
    if asked is None or asked.value >= most.value:
        granted, _ = resolve_trace(request, MODEL, limits)
        assert granted.content is (asked or most)
        return
    with pytest.raises(InvalidRequestError) as caught:
        resolve_trace(request, MODEL, limits)
    (violation,) = caught.value.violations
    assert violation.field == "trace.content"
    assert f"this server keeps '{most.spelling}' (--journal-content)" in violation.description
