"""Explanations of a real model: a planted fact is found, and the trust says so."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engine_harness import loaded_model

from whence_server.engines.transformers.loading import LoadedModel
from whence_server.explain.ablation import ablate_halves
from whence_server.explain.leave_one_out import leave_one_out
from whence_server.explain.operators import Operator
from whence_server.explain.scores import Progress, Scores
from whence_server.explain.segments import Segment, divide, read_texts
from whence_server.explain.target import Target
from whence_server.explain.trust import Verdict, measure_trust
from whence_server.text.tokenizer import TextTokenizer

PARAGRAPH = (
    "What we know so far: "
    "Anna keeps the keys in the drawer. It had rained for most of the night. "
    "Bruno keeps the keys in the garage. Clara goes to work by train. "
    "The road to the village is narrow. Emil has a meeting every Monday."
)
PROMPT = (
    f"<|im_start|>user\n{PARAGRAPH}\nWhere does Bruno keep the keys?<|im_end|>\n"
    "<|im_start|>assistant\nBruno keeps the keys in the"
)
ANSWER, OTHER = " garage", " drawer"
Method = Callable[[Any, Target, Sequence[Segment], Mapping[str, object], Progress], Scores]
RUNS: dict[str, tuple[Method, dict[str, object]]] = {
    "leave one out": (leave_one_out, {}),
    "leave one out, hidden": (leave_one_out, {"operator": "hide"}),
    "ablations": (ablate_halves, {"num_ablations": 16}),
}


class Case(NamedTuple):
    """A question to the model, and the sentences of its prompt."""

    loaded: LoadedModel
    prompt_ids: tuple[int, ...]
    answer: int
    other: int
    segments: list[Segment]
    texts: list[str]

    def target(self, *, against: bool) -> Target:
        """Return the answer as a target."""
        start = len(self.prompt_ids)
        contrast = (self.other,) if against else ()
        return Target((*self.prompt_ids, self.answer), start, start, contrast)

    def find(self, word: str) -> int:
        """Return the index of the first sentence with a word."""
        return next(i for i, text in enumerate(self.texts) if word in text)


def ignore(_done: int, _total: int) -> None:
    """Wait for no progress."""


@pytest.fixture(scope="module")
def case(real_model: Path) -> Case:
    loaded = loaded_model(real_model)
    tokenizer = TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)
    ids = tuple(tokenizer.encode(PROMPT))
    (answer,), (other,) = (
        tokenizer.encode(text, add_special_tokens=False) for text in (ANSWER, OTHER)
    )
    segments, _ = divide(read_texts(tokenizer, ids))
    texts = [tokenizer.decode(ids[start:end]) for start, end in segments]
    return Case(loaded, ids, answer, other, segments, texts)


def test_the_segments_are_the_sentences_of_the_messages(case: Case) -> None:
    assert [text.strip() for text in case.texts] == [
        "What we know so far: Anna keeps the keys in the drawer.",
        "It had rained for most of the night.",
        "Bruno keeps the keys in the garage.",
        "Clara goes to work by train.",
        "The road to the village is narrow.",
        "Emil has a meeting every Monday.",
        "Where does Bruno keep the keys?",
        "Bruno keeps the keys in the",
    ]


@pytest.mark.parametrize("name", RUNS)
def test_the_planted_fact_is_found_and_the_contrast_speaks_against(case: Case, name: str) -> None:
    run, options = RUNS[name]
    scores = run(case.loaded.model, case.target(against=True), case.segments, options, ignore)
    fact, other = case.find("garage"), case.find("drawer")
    # The question and the begun answer matter as well; of the paragraph, the fact matters most.
    assert max(scores.values[:6]) == scores.values[fact] > 0
    assert scores.values[other] < 0


def test_trust_is_measured_under_the_other_operator(case: Case) -> None:
    target = case.target(against=False)
    scores = leave_one_out(case.loaded.model, target, case.segments, {}, ignore)
    assert max(scores.values[:6]) == scores.values[case.find("garage")] > 0
    trust = measure_trust(
        case.loaded.model,
        target,
        case.segments,
        scores.values,
        ignore,
        fitted=Operator.REMOVE,
        num_ablations=20,
    )
    assert trust.operator is Operator.HIDE
    assert trust.verdict in {Verdict.MODERATE, Verdict.HIGH}
    assert trust.deletion[1] < trust.random_deletion[1]
