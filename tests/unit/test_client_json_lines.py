"""Objects that `whence generate --json` prints: of starts with an adapter, and of rounds."""

from whence.cli.json_lines import describe_event, format_json
from whence.generation import GenerationState
from whence.v1.generation_pb2 import (
    AppliedAdapter,
    BeamContinuation,
    BeamRound,
    GenerationEvent,
    GenerationStarted,
)
from whence.v1.step_pb2 import StepTiming


def test_a_round_says_what_is_zero_and_what_is_false() -> None:
    event = GenerationEvent(
        beam_round=BeamRound(
            index=0,
            continuations=[
                BeamContinuation(parent=0, token_id=0, logprob=-0.5, score=-0.5, kept=True),
                BeamContinuation(parent=1, token_id=7, logprob=-2, score=-2.5, finished=True),
                BeamContinuation(parent=2, logprob=float("-inf"), score=float("-inf")),
            ],
            timing=StepTiming(elapsed_ns=1, forward_ns=2, select_ns=3, batch_size=4),
        )
    )
    (said,) = describe_event(event, GenerationState("g", lambda _: None))
    assert said == {
        "event": "beam_round",
        "index": 0,
        "continuations": [
            {
                "parent": 0,
                "token_id": 0,
                "logprob": -0.5,
                "score": -0.5,
                "kept": True,
                "finished": False,
            },
            {
                "parent": 1,
                "token_id": 7,
                "logprob": -2.0,
                "score": -2.5,
                "kept": False,
                "finished": True,
            },
            {"parent": 2, "logprob": None, "score": None, "kept": False, "finished": False},
        ],
        "timing": {
            "elapsed_ns": 1,
            "forward_ns": 2,
            "select_ns": 3,
            "batch_size": 4,
            "context_length": 0,
        },
    }
    assert '"logprob":null' in format_json(said)


def test_a_start_names_its_adapter() -> None:
    generation = GenerationState("g", lambda _: None)
    adapter = AppliedAdapter(
        name="tone",
        peft_type="LORA",
        digest="aa",
        base="the/base",
        base_model_digest="bb",
        weights_digest="cc",
    )
    for started in (GenerationStarted(adapter=adapter), GenerationStarted()):
        event = GenerationEvent(started=started)
        generation._observe(event)
        (said,) = describe_event(event, generation)
        assert said.get("adapter") == (
            {
                "name": "tone",
                "peft_type": "LORA",
                "digest": "aa",
                "base": "the/base",
                "base_model_digest": "bb",
                "weights_digest": "cc",
            }
            if started.HasField("adapter")
            else None
        )
