"""Parents of branches: those whose record lacks what a branch needs are refused."""

import pytest

from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.errors import ForkRefusedError
from whence_server.generation.parents import Parent, require_same_model


class Served:
    """The parts of a model's description that a branch is compared with."""

    tokenizer_digest = "t1"
    weights_digest = "w1"
    model_digest = "m1"
    adapters = ()


def make_started(**fields: object) -> GenerationStarted:
    started = GenerationStarted(
        generation_id="g",
        tokenizer_digest="t1",
        model_digest="m1",
        **fields,  # type: ignore[arg-type]
    )
    started.environment.weights_digest = "w1"
    return started


def check(started: GenerationStarted) -> None:
    require_same_model(started, Served())  # type: ignore[arg-type]


def test_parent_of_the_served_weights_can_be_forked() -> None:
    check(make_started())
    early = make_started()
    early.environment.ClearField("weights_digest")
    check(early)


def test_parent_of_another_model_is_refused_with_both_digests() -> None:
    other = make_started()
    other.environment.weights_digest = "w2"
    with pytest.raises(ForkRefusedError, match="weights w2, and this server serves w1"):
        check(other)
    early = make_started()
    early.environment.ClearField("weights_digest")
    early.model_digest = "m2"
    with pytest.raises(ForkRefusedError, match="weights m2, and this server serves m1"):
        check(early)
    other = make_started()
    other.tokenizer_digest = "t2"
    with pytest.raises(ForkRefusedError, match="tokenizer t2"):
        check(other)


def test_parent_of_an_upstream_is_refused() -> None:
    other = make_started()
    other.upstream.kind = "vllm"
    with pytest.raises(ForkRefusedError, match="of an upstream"):
        check(other)


def test_redacted_tokens_cannot_be_repeated_but_those_before_them_can() -> None:
    parent = Parent(make_started(), [Step(index=0, token_id=5), Step(index=1)])
    assert parent.get_token_ids(0, 1) == (5,)
    with pytest.raises(ForkRefusedError, match="token 1 is not on record: a part of the text was"):
        parent.get_token_ids(0, 2)
    with pytest.raises(ForkRefusedError, match="its prompt is not on record"):
        parent.get_prompt_token_ids()
