"""Constraints in the engine's loop, compared with transformers' own constrained `generate`."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_harness import BeamHarness, as_in_transformers, beams, greedy, prompt_of, sampled
from jsonschema import Draft202012Validator
from schema_kinds import KINDS

from whence_server.constraints.errors import ConstraintError
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.engine import Admit, Replay
from whence_server.engines.transformers.compiled_constraints import (
    CompiledConstraints,
    load_compiler,
)
from whence_server.engines.transformers.inbox import AdmitConstrained
from whence_server.engines.transformers.loading import LoadedModel

RECORD = json.dumps(KINDS["record"].schema)
CONSTRAINTS = {
    "schema": Constraint(Language.JSON_SCHEMA, RECORD),
    "regex": Constraint(Language.REGEX, "(ab|cd)+ef?g"),
    "grammar": Constraint(Language.GRAMMAR, 'start: "(" start ")" | "x"'),
}


class Engine(BeamHarness):
    """Harness that compiles constraints as the worker's inbox does."""

    def __init__(self, loaded: LoadedModel, **options: Any) -> None:
        super().__init__(loaded, **options)
        self.compiled = CompiledConstraints(lambda: load_compiler(loaded.info))
        self.complete: dict[str, bool | None] = {}

    def start(
        self, generation_id: str, prompt: list[int], decoding: Decoding, *replays: Replay
    ) -> None:
        admit = Admit(generation_id, prompt, decoding, TraceOptions(), replays)
        self.loop.handle(admit if decoding.constraint is None else self.compiled.compile(admit))


@pytest.fixture(scope="module")
def gpt2(models: Callable[[str], LoadedModel]) -> LoadedModel:
    return models("gpt2")


def end_of(loaded: LoadedModel) -> int:
    return loaded.info.defaults.eos_token_ids[0]


def reference(
    loaded: LoadedModel, prompt: list[int], constraint: Constraint, **settings: object
) -> list[list[int]]:
    """Return the ids of `generate`, whose allowed tokens are asked of the compiled constraint."""
    compiled, end = load_compiler(loaded.info).compile(constraint), end_of(loaded)

    def list_allowed(_: int, token_ids: torch.Tensor) -> list[int]:
        state = compiled.copy()
        generated = token_ids[len(prompt) :].tolist()
        if end in generated:
            return [end]
        try:
            state.advance(generated)
        except ConstraintError:
            return [end]
        allowed: list[int] = state.compute_mask().nonzero()[0].tolist()
        return [*allowed, end] if state.is_complete else allowed

    with as_in_transformers(loaded.model):
        output = loaded.model.generate(
            torch.tensor([prompt], device=loaded.model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=loaded.model.device),
            do_sample=False,
            prefix_allowed_tokens_fn=list_allowed,
            eos_token_id=end,
            pad_token_id=0,
            **settings,
        )
    found = []
    for ids in output[:, len(prompt) :].tolist():
        last = next((i for i, token_id in enumerate(ids) if token_id == end), len(ids) - 1)
        found.append(ids[: last + 1])
    return found


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_greedy_and_beams_equal_generate(gpt2: LoadedModel, name: str) -> None:
    constraint, prompt = CONSTRAINTS[name], prompt_of(9, 5)
    options: dict[str, Any] = {"constraint": constraint, "eos_token_ids": (end_of(gpt2),)}
    engine = Engine(gpt2)
    engine.start("greedy", prompt, greedy(30, **options))
    engine.start("beams", prompt, beams(30, 3, num_return_sequences=2, **options))
    engine.start("free", prompt, greedy(30, ignore_eos=True))
    engine.run()
    assert not engine.failed
    assert [engine.ids("greedy")] == reference(gpt2, prompt, constraint, max_new_tokens=30)
    assert engine.winners("beams") == reference(
        gpt2,
        prompt,
        constraint,
        max_new_tokens=30,
        num_beams=3,
        num_return_sequences=2,
        early_stopping=False,
    )
    alone = Engine(gpt2)
    alone.start("free", prompt, greedy(30, ignore_eos=True))
    alone.run()
    assert engine.ids("free") == alone.ids("free")


def decode(loaded: LoadedModel, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(loaded.info.text.tokenizer_json)
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def test_samples_at_a_high_temperature_validate_or_are_said_to_be_cut(gpt2: LoadedModel) -> None:
    validator = Draft202012Validator(KINDS["record"].schema)
    engine, end = Engine(gpt2), end_of(gpt2)
    settings = {
        "constraint": CONSTRAINTS["schema"],
        "eos_token_ids": (end,),
        "num_return_sequences": 12,
        "temperature": 3.0,
        "top_p": 1.0,
    }
    engine.start("it", prompt_of(6, 2), sampled(90, **settings))
    engine.run()
    ends = set()
    for index in range(12):
        last = engine.steps["it", index][-1]
        text = decode(gpt2, engine.ids("it", index))
        try:
            valid = validator.is_valid(json.loads(text))
        except ValueError:
            valid = False
        assert last.constraint_complete == valid, text
        if last.finish is FinishReason.END_OF_SEQUENCE:
            assert valid
        ends.add(last.finish)
    assert ends == {FinishReason.END_OF_SEQUENCE, FinishReason.LENGTH}


def test_each_returned_beam_says_whether_it_is_complete(gpt2: LoadedModel) -> None:
    engine = Engine(gpt2)
    for name, longest in (("whole", 30), ("cut", 3)):
        settings = {"constraint": CONSTRAINTS["grammar"], "eos_token_ids": (end_of(gpt2),)}
        engine.start(name, prompt_of(5, 1), beams(longest, 2, **settings))
    engine.run()
    for name in ("whole", "cut"):
        told = [
            slice_.constraint_complete
            for turn in engine.turns
            for slice_ in turn.beam_steps
            if slice_.generation_id == name and slice_.finish is not None
        ]
        text = decode(gpt2, engine.winners(name)[0])
        assert told == [text.count("(") == text.count(")") and "x" in text], text


def test_a_round_lists_what_the_constraint_leaves(gpt2: LoadedModel) -> None:
    engine = Engine(gpt2)
    settings = {"constraint": CONSTRAINTS["grammar"], "eos_token_ids": (end_of(gpt2),)}
    engine.start("it", prompt_of(5, 1), beams(6, 2, **settings))
    engine.run()
    # At most three continuations of a beam have a probability: "(", "x" and ")" or the end.
    for made in engine.rounds["it"]:
        listed = [one for one in made.continuations if one.score > -float("inf")]
        assert 0 < len(listed) <= 6
        assert all(one.kept for one in made.continuations if one not in listed)


def test_a_generation_continues_after_a_restart_as_it_would_have(gpt2: LoadedModel) -> None:
    settings: dict[str, Any] = {
        "constraint": CONSTRAINTS["schema"],
        "eos_token_ids": (end_of(gpt2),),
        "num_return_sequences": 2,
    }
    prompt, decoding = prompt_of(6, 3), sampled(40, **settings)
    whole, again = Engine(gpt2), Engine(gpt2)
    whole.start("it", prompt, decoding)
    whole.run()
    begun = [Replay(index, whole.ids("it", index)[: 7 + index]) for index in range(2)]
    again.start("it", prompt, decoding, *begun)
    again.steps["it", 0], again.steps["it", 1] = (
        whole.steps["it", 0][:7],
        whole.steps["it", 1][:8],
    )
    again.run()
    for index in range(2):
        assert again.ids("it", index) == whole.ids("it", index)


def test_a_constraint_that_cannot_be_compiled_fails_its_generation(gpt2: LoadedModel) -> None:
    engine = Engine(gpt2)
    decoding = greedy(5, constraint=CONSTRAINTS["regex"])
    admit = Admit("it", prompt_of(4, 1), decoding, TraceOptions())
    engine.loop.handle(AdmitConstrained(admit, ConstraintError("is too complex")))
    engine.run()
    assert engine.failed["it"].reason == "CONSTRAINT_FAILED"
    assert engine.failed["it"].message == "the constraint is too complex"
