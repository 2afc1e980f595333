"""Constraints in a step: what they take away, beside other processors, in a batch and for beams."""

import dataclasses

import numpy as np
import pytest
import torch
from constraint_texts import SPECIAL, VOCABULARY, json_schema, make_compiler, regex
from decoding_oracle import DECISIONS, GREEDY, SAMPLE

from whence_server.domain.constraints import Constraint
from whence_server.domain.decoding import Decoding
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.choosing import IsolatingChooser
from whence_server.engines.transformers.decoding import Chooser, NoChoice, Row
from whence_server.engines.transformers.decoding.constraints import RowConstraint, start_constraint

V = len(VOCABULARY)
COMPILER = make_compiler()
CHOOSER = Chooser(V, torch.device("cpu"))
WORDS = regex("(a|b)c+")


def make_row(constraint: Constraint | None, begin: bytes = b"", base: Decoding = GREEDY) -> Row:
    decoding = dataclasses.replace(base, constraint=constraint, eos_token_ids=(SPECIAL,))
    state = None
    if constraint is not None:
        state = start_constraint(COMPILER.compile(constraint), decoding, list(begin))
    return Row(decoding, DECISIONS, 0, [1, *begin], len(begin), constraint=state)


def make_logits(num_rows: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randn(num_rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def choose(row: Row, logits: torch.Tensor) -> Decision:
    decision = CHOOSER.choose(logits, [row])[0]
    assert isinstance(decision, Decision)
    return decision


@pytest.mark.parametrize("base", [GREEDY, dataclasses.replace(SAMPLE, temperature=0.7, top_k=3)])
def test_the_record_has_what_the_constraint_took_from_the_models_own_distribution(
    base: Decoding,
) -> None:
    row, logits = make_row(WORDS, b"", base), make_logits()
    decision = choose(row, logits)
    own = torch.softmax(logits[0].double(), -1)
    allowed = [ord("a"), ord("b")]
    assert list_processor_names(row.decoding)[0] == "constraint"
    assert decision.token_id in allowed
    assert decision.effects is not None
    assert decision.effects.num_kept[0] == 2
    assert decision.effects.removed_mass[0] == pytest.approx(
        1 - float(own[allowed].sum()), abs=1e-6
    )
    kept = torch.log(own[decision.token_id] / own[allowed].sum())
    assert decision.effects.token_logprobs[0] == pytest.approx(float(kept), abs=1e-5)


def test_the_models_own_first_choice_is_on_record_although_it_was_removed() -> None:
    logits = make_logits()
    logits[0, ord("z")] = 20.0
    decision = choose(make_row(WORDS), logits)
    assert decision.candidates is not None
    assert decision.candidates.token_ids[0] == ord("z")
    assert decision.candidates.sampling_logprobs[0] == -np.inf
    assert decision.rank == int((logits[0] > logits[0, decision.token_id]).sum()) > 0


def test_a_forced_token_is_the_only_one_kept() -> None:
    decision = choose(make_row(WORDS, b"a"), make_logits())
    assert decision.token_id == ord("c")
    assert decision.sampling_logprob == 0.0
    assert decision.effects is not None
    assert decision.effects.num_kept == [1]


@pytest.mark.parametrize(("begin", "ends"), [(b"", False), (b"a", False), (b"ac", True)])
def test_the_end_remains_where_the_text_is_complete_and_only_there(
    begin: bytes, ends: bool
) -> None:
    logits = make_logits()
    logits[0, SPECIAL] = 30.0
    assert (choose(make_row(WORDS, begin), logits).token_id == SPECIAL) == ends


def test_rows_with_and_without_constraints_do_not_touch_each_other() -> None:
    schema = json_schema({"type": "array", "items": {"enum": [1, 2]}})
    made = [(WORDS, b"b"), (None, b"xy"), (schema, b"["), (WORDS, b""), (None, b"")]
    logits = make_logits(len(made))
    together = CHOOSER.choose(logits, [make_row(*one) for one in made])
    alone = [CHOOSER.choose(logits[i : i + 1], [make_row(*one)])[0] for i, one in enumerate(made)]
    assert together == alone


@pytest.mark.parametrize(
    ("begin", "setting", "message"),
    [
        (b"a", {"bad_word_ids": ((ord("c"),),)}, "leaves 1 tokens, and the other decoding"),
        (b"acc", {"min_new_tokens": 40}, None),
    ],
)
def test_a_conflict_with_other_settings_is_explained(
    begin: bytes, setting: dict[str, object], message: str | None
) -> None:
    row = make_row(WORDS, begin, dataclasses.replace(GREEDY, **setting))  # type: ignore[arg-type]
    decision = CHOOSER.choose(make_logits(), [row])[0]
    if message is None:
        # The text can go on, so that the minimum is reached.
        assert isinstance(decision, Decision)
    else:
        assert isinstance(decision, NoChoice)
        assert decision.reason == "NO_TOKEN_LEFT"
        assert message in decision.message


def test_a_complete_text_that_may_not_end_yet_is_explained() -> None:
    base = dataclasses.replace(GREEDY, min_new_tokens=5)
    decision = CHOOSER.choose(make_logits(), [make_row(regex("ab"), b"ab", base)])[0]
    assert isinstance(decision, NoChoice)
    assert "complete and nothing may follow, but min_new_tokens" in decision.message


def test_a_failed_constraint_fails_its_row_alone() -> None:
    broken, whole = make_row(WORDS, b"a"), make_row(WORDS, b"a")
    assert broken.constraint is not None
    broken.constraint.advance(ord("x"))
    chooser = IsolatingChooser(CHOOSER, lambda: None)
    failed, made = chooser.choose(make_logits(2), [broken, whole])
    assert isinstance(failed, NoChoice)
    assert (failed.reason, isinstance(made, Decision)) == ("CONSTRAINT_FAILED", True)


def test_a_row_follows_its_tokens_and_a_copy_goes_its_own_way() -> None:
    row = make_row(WORDS)
    row.append(ord("a"))
    other = make_row(WORDS)
    other.append(ord("b"))
    other.take_over(row)
    other.append(ord("c"))
    assert row.get_constraint().is_complete is False
    assert other.get_constraint().is_complete is True
    assert other.token_ids.tolist() == [1, ord("a"), ord("c")]


def test_a_beam_without_a_continuation_goes_on_with_any_token() -> None:
    state = RowConstraint(COMPILER.compile(WORDS).copy(), [SPECIAL])
    assert not state.read_mask()[ord("x")]
    state.advance(ord("x"))
    assert state.read_mask().all()
    for copied in (state, state.copy()):
        copied.advance(ord("y"))
        assert copied.read_mask().all()
        assert not copied.is_complete
