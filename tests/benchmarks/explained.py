"""Cases that explanations are measured on, and every method that ranks the parts of a context."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from questioned import Asked, Questioned
from questions import MEASURING, Prompt, make_prompt

from whence_server.engines.transformers.loading import LoadedModel
from whence_server.explain import network_methods
from whence_server.explain.ablation import ablate_halves
from whence_server.explain.leave_one_out import leave_one_out
from whence_server.explain.scores import Progress
from whence_server.explain.segment_units import Unit
from whence_server.explain.segments import Segment, divide, read_texts
from whence_server.explain.target import Target
from whence_server.text.tokenizer import TextTokenizer

RANDOM, NEWEST, MEAN = "random", "newest first", "mean attention"
ALIKE, STREAM, FITTED = (
    f"direct sources, heads {how}" for how in ("alike", "weighed", "fitted to ablations")
)
ALONE, ALONE_HIDDEN = "leave one out", "leave one out, hidden"
GRADIENT, INTEGRATED, FLOW = "gradient x input", "integrated gradients", "information flow"
RANDOM_32, RANDOM_64 = "32 random ablations", "64 random ablations"
RANDOM_64_HIDDEN = "64 random ablations, hidden"
SEED = 1


class Case(NamedTuple):
    """A question that the model answers right.

    Attributes:
        target: the answer's token.
        segments: sentences of the whole prompt.
        paragraph: indices of the segments that are sentences of the paragraph.
        fact: index of the segment with the answer.
        asked: what the model's attention read.
    """

    target: Target
    segments: list[Segment]
    paragraph: list[int]
    fact: int
    asked: Asked


class Attribution(NamedTuple):
    """Scores of a case, and what they cost.

    Attributes:
        scores: score of each segment.
        seconds: time; 0 for what is read off a pass that the answer took anyway.
    """

    scores: "np.ndarray[Any, Any]"
    seconds: float


def list_cases(
    loaded: LoadedModel, questioned: Questioned, num_cases: int, **sizes: int
) -> Iterator[Case]:
    """Yield questions that the model answers right, half of them as chats."""
    tokenizer = TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)
    rng = random.Random(SEED)
    found = number = 0
    while found < num_cases:
        prompt = make_prompt(MEASURING, rng, is_chat=number % 2 == 1, **sizes)
        number += 1
        asked = questioned.read(prompt)
        if asked is not None:
            found += 1
            yield make_case(tokenizer, prompt, asked)


def make_case(tokenizer: TextTokenizer, prompt: Prompt, asked: Asked) -> Case:
    """Return the case of a prompt, divided as a user's prompt is."""
    ids = tuple(asked.token_ids)
    segments, _ = divide(read_texts(tokenizer, ids), Unit.SENTENCES)
    paragraph = [
        next(i for i, segment in enumerate(segments) if segment.start <= end - 1 < segment.end)
        for _, end in asked.sentences
    ]
    target = Target((*ids, asked.answer), len(ids), len(ids))
    return Case(target, segments, paragraph, paragraph[prompt.fact], asked)


def list_methods(
    loaded: LoadedModel, thetas: dict[str, torch.Tensor], *, with_slow: bool = False
) -> dict[str, Callable[[Case], "np.ndarray[Any, Any]"]]:
    """Return every method by its name: it gives a score to each segment.

    Args:
        loaded: the model.
        thetas: weights of heads by the name of their direct sources: [K].
        with_slow: true for methods that take minutes too.
    """
    rng = np.random.default_rng(SEED)
    methods: dict[str, Callable[[Case], np.ndarray[Any, Any]]] = {
        RANDOM: lambda case: rng.standard_normal(len(case.segments)),
        NEWEST: lambda case: np.arange(len(case.segments)).astype(float),
        MEAN: lambda case: _sum(case, case.asked.attention),
    }
    for name, theta in thetas.items():
        methods[name] = lambda case, theta=theta: _sum(  # type: ignore[misc]
            case, case.asked.attention * case.asked.norms * theta.unsqueeze(1)
        )
    for name, run, options in (
        (GRADIENT, network_methods.gradient, {}),
        *(((INTEGRATED, network_methods.integrated_gradients, {}),) if with_slow else ()),
        (FLOW, network_methods.flow, {}),
        (ALONE, leave_one_out, {}),
        (ALONE_HIDDEN, leave_one_out, {"operator": "hide"}),
        (RANDOM_32, ablate_halves, {"num_ablations": 32}),
        (RANDOM_64, ablate_halves, {"num_ablations": 64}),
        (RANDOM_64_HIDDEN, ablate_halves, {"num_ablations": 64, "operator": "hide"}),
    ):
        methods[name] = lambda case, run=run, options=options: np.array(  # type: ignore[misc]
            run(loaded.model, case.target, case.segments, options, ignore).values
        )
    return methods


def attribute(method: Callable[[Case], "np.ndarray[Any, Any]"], case: Case) -> Attribution:
    """Return a method's scores of a case, with their time."""
    started = time.perf_counter()
    scores = method(case)
    return Attribution(scores, time.perf_counter() - started)


def _sum(case: Case, read: torch.Tensor) -> "np.ndarray[Any, Any]":
    """Return what all heads read from each segment."""
    of_position = read.sum(0)
    return np.array([float(of_position[slice(*segment)].sum()) for segment in case.segments])


ignore: Progress = lambda _done, _total: None  # noqa: E731 - a type that is checked
