"""Records a model's decoding step, and trusts it only if its logits are the model's to the bit."""

import logging
import time
from typing import Any, NamedTuple

import torch

from whence_server.engine.internals.probe import NOTHING, Inside
from whence_server.engine.internals.probed_rows import Observation
from whence_server.engine.runner import Runner
from whence_server.engine.step_graph import NotRecordableError, StepGraph
from whence_server.engine.style import ForwardStyle

logger = logging.getLogger(__name__)

LONG_STEP_S = 0.25
"""A step that computes for so long hides what Python adds to it, and takes as long to check."""
NUM_TIMED_STEPS = 3
PROMPT_LENGTHS = (3, 7, 2, 12)
STEPS_EACH = 2


def recorded(model: Any, style: ForwardStyle, inside: Inside = NOTHING) -> StepGraph | None:
    """The model's decoding step as a graph; None where its modules have to do the work."""
    name = type(model).__name__
    try:
        graph = _record(model, style, inside)
    except NotRecordableError as obstacle:
        logger.info("%s decodes through its modules: %s", name, obstacle)
        return None
    same = _compared(model, style, graph, inside)
    if not same.logits:
        logger.warning("%s decodes through its modules: recorded, its steps differ", name)
        return None
    if graph.observes and not same.observed:
        logger.warning("%s is observed through its modules: recorded, it shows other things", name)
        return graph.unobserved()
    return graph


class _Same(NamedTuple):
    """What a graph gives that is the modules' to the bit.

    Attributes:
        logits: of steps in which nobody is observed.
        observed: of the others the logits, and what is seen.
    """

    logits: bool
    observed: bool


@torch.inference_mode()
def _record(model: Any, style: ForwardStyle, inside: Inside) -> StepGraph:
    runner = Runner(model, style)
    for length in PROMPT_LENGTHS[:2]:
        _join(runner, _tokens(model, length, seed=0))
    step_s = _step_s(runner, _tokens(model, 2, seed=1))
    if step_s > LONG_STEP_S:
        raise NotRecordableError(f"a step takes {step_s:.1f} s, next to which they cost nothing")
    inputs = runner.step_inputs(_tokens(model, 2, seed=2))
    return StepGraph.record(model, style, inputs, inside)


def _step_s(runner: Runner, token_ids: list[int]) -> float:
    """The quickest step in seconds: one may have to wait for a core, or for its first use."""
    durations: list[float] = []
    while len(durations) < NUM_TIMED_STEPS and (not durations or min(durations) > LONG_STEP_S):
        started = time.monotonic()
        runner.decode(token_ids)
        runner.synchronize()
        durations.append(time.monotonic() - started)
    return min(durations)


def _compared(model: Any, style: ForwardStyle, graph: StepGraph, inside: Inside) -> _Same:
    """Compares batches that grow and shrink, over contexts of many lengths and other tokens.

    The graph's rows are once observed and once not; the modules' always are.
    """
    same = _Same(logits=True, observed=True)
    ways = [
        (Runner(model, style, None, inside), True),
        (Runner(model, style, graph, inside), True),
        (Runner(model, style, graph, inside), False),
    ]
    try:
        for i, length in enumerate(PROMPT_LENGTHS):
            for runner, observed in ways:
                _join(runner, _tokens(model, length, seed=length), observed=observed)
                if i == len(PROMPT_LENGTHS) - 1:
                    runner.leave(0)
            for step in range(STEPS_EACH):
                token_ids = _tokens(model, ways[0][0].num_rows, seed=10 * length + step)
                expected, watched, plain = (runner.decode(token_ids) for runner, _ in ways)
                first, second, _ = (_observation(runner) for runner, _ in ways)
                if not _equal(plain, expected):
                    return _Same(logits=False, observed=False)
                if not (_equal(watched, expected) and _saw_the_same(first, second)):
                    same = same._replace(observed=False)
    except RuntimeError as error:
        logger.debug("the recorded step fails: %s", error)
        return _Same(logits=False, observed=False)
    return same


def _observation(runner: Runner) -> Observation | None:
    """What a step showed; None also where that failed."""
    try:
        return runner.observe()
    except Exception as error:  # noqa: BLE001 - recorded code, tried out: any failure means no
        logger.debug("what a step shows cannot be seen: %s", error)
        return None


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _saw_the_same(one: Observation | None, other: Observation | None) -> bool:
    if one is None or other is None:
        return False
    if one.hidden is not None and other.hidden is not None and not _equal(one.hidden, other.hidden):
        return False
    return one.sources == other.sources


def _join(runner: Runner, token_ids: list[int], *, observed: bool = False) -> None:
    prompt = runner.start(token_ids, observed=observed)
    runner.prefill(prompt, len(token_ids), all_logits=False)
    runner.join(prompt)


def _tokens(model: Any, count: int, seed: int) -> list[int]:
    """Ids from all over the vocabulary, always the same."""
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    return [(7919 * (seed * 31 + i) + 3) % vocabulary_size for i in range(count)]
