"""Requests of `fork`, from keyword arguments."""

from typing import Any

import pytest

from whence import PromptEdit
from whence.forks import fork_request
from whence.v1 import generation_pb2 as pb

PARENT = "6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10"


def make(**options: Any) -> pb.ForkGenerationRequest:
    return fork_request(PARENT, options)  # type: ignore[arg-type]


def test_what_is_left_out_stays_as_in_the_parent() -> None:
    request = make()
    assert request.parent_generation_id == PARENT
    assert request.generation_id
    assert request.disconnect_grace.seconds == 60
    request.ClearField("generation_id")
    request.ClearField("disconnect_grace")
    assert request == pb.ForkGenerationRequest(parent_generation_id=PARENT)


def test_changes_are_set() -> None:
    request = make(
        step=5, sequence=2, instead=" Lyon", seed=7, top_k=3, stop="x", reset=["constraint"]
    )
    assert (request.step, request.sequence_index) == (5, 2)
    assert request.instead.text == " Lyon"
    assert (request.decoding.sample.seed, request.decoding.sample.top_k) == (7, 3)
    assert list(request.decoding.stop) == ["x"]
    assert list(request.reset_decoding) == ["constraint"]
    assert list(make(instead=[4, 5]).instead.tokens.token_ids) == [4, 5]
    assert make(num_candidates=3).trace.num_candidates == 3


def test_prompt_is_another_text_ids_a_conversation_or_edited() -> None:
    assert make(prompt="A").prompt == "A"
    assert list(make(prompt=[1, 2]).tokens.token_ids) == [1, 2]
    asked = make(messages=[{"role": "user", "content": "A"}])
    assert asked.chat.messages[0].content == "A"
    first, second, third = make(
        edits=[
            PromptEdit(begin=1, end=2),
            PromptEdit(begin=3, end=4, text="b"),
            PromptEdit(begin=5, end=6, mask_token_id=0),
        ]
    ).edits.edits
    assert first.WhichOneof("replacement") is None
    assert (second.begin, second.end, second.text) == (3, 4, "b")
    assert third.WhichOneof("replacement") == "mask_token_id"


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"forced": "a"}, ValueError, "`instead`"),
        ({"model": "a"}, TypeError, "no option 'model'"),
        ({"warmth": 1}, TypeError, "no option 'warmth'"),
        ({"step": -1}, ValueError, "step"),
        ({"step": "a"}, TypeError, "step"),
        ({"prompt": "a", "edits": [PromptEdit(begin=0, end=1)]}, TypeError, "edits"),
        ({"prompt": "a", "messages": []}, TypeError, "contradict"),
        ({"tools": []}, ValueError, "chat template"),
        ({"greedy": True, "temperature": 1.0}, ValueError, "greedy"),
        ({"edits": [PromptEdit(begin=0, end=1, text="a", mask_token_id=1)]}, ValueError, "one of"),
        ({"edits": [PromptEdit(begin=-1, end=1)]}, ValueError, "edits"),
    ],
)
def test_what_no_request_can_represent_is_refused(
    options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        make(**options)
