"""Capture of a model's decoding step, which is used only if its logits are bit-identical."""

import logging
import time
from typing import Any, NamedTuple

import torch

from whence_server.engine.internals.probe import NO_PROBE, Probe
from whence_server.engine.internals.probed_rows import ProbeReadout
from whence_server.engine.runner import Runner
from whence_server.engine.step_graph import NotCapturableError, StepGraph
from whence_server.engine.style import ForwardStyle

logger = logging.getLogger(__name__)

LONG_STEP_S = 0.25
"""Step time above which a graph is not worth capturing: Python's overhead is small beside it."""
NUM_TIMED_STEPS = 3
PROMPT_LENGTHS = (3, 7, 2, 12)
STEPS_EACH = 2


def capture_step(model: Any, style: ForwardStyle, probe: Probe = NO_PROBE) -> StepGraph | None:
    """Return the model's decoding step as a graph; None if the modules have to run instead."""
    name = type(model).__name__
    try:
        graph = _capture(model, style, probe)
    except NotCapturableError as obstacle:
        logger.info("%s decodes through its modules: %s", name, obstacle)
        return None
    same = _compare(model, style, graph, probe)
    if not same.logits:
        logger.warning("%s decodes through its modules: the captured graph's logits differ", name)
        return None
    if graph.has_probe and not same.probed:
        logger.warning(
            "%s is probed through its modules: the captured graph's activations differ", name
        )
        return graph.drop_probe()
    return graph


class _Agreement(NamedTuple):
    """Results of a graph that are bit-identical with those of the modules.

    Attributes:
        logits: True if the logits of steps without probed rows are.
        probed: True if the logits and readouts of steps with probed rows are.
    """

    logits: bool
    probed: bool


@torch.inference_mode()
def _capture(model: Any, style: ForwardStyle, probe: Probe) -> StepGraph:
    runner = Runner(model, style)
    for length in PROMPT_LENGTHS[:2]:
        _join(runner, _make_tokens(model, length, seed=0))
    step_s = _time_step(runner, _make_tokens(model, 2, seed=1))
    if step_s > LONG_STEP_S:
        raise NotCapturableError(f"a step takes {step_s:.1f} s, so that a graph would save little")
    inputs = runner.take_step_inputs(_make_tokens(model, 2, seed=2))
    return StepGraph.capture(model, style, inputs, probe)


def _time_step(runner: Runner, token_ids: list[int]) -> float:
    """Return the time of the fastest of several steps, in seconds; the first ones may be slow."""
    durations: list[float] = []
    while len(durations) < NUM_TIMED_STEPS and (not durations or min(durations) > LONG_STEP_S):
        started = time.monotonic()
        runner.decode(token_ids)
        runner.synchronize()
        durations.append(time.monotonic() - started)
    return min(durations)


def _compare(model: Any, style: ForwardStyle, graph: StepGraph, probe: Probe) -> _Agreement:
    """Compare graph and modules over batches that grow and shrink, with prompts of several lengths.

    The graph runs both with and without probed rows, the modules with probed rows.
    """
    same = _Agreement(logits=True, probed=True)
    ways = [
        (Runner(model, style, None, probe), True),
        (Runner(model, style, graph, probe), True),
        (Runner(model, style, graph, probe), False),
    ]
    try:
        for i, length in enumerate(PROMPT_LENGTHS):
            for runner, probed in ways:
                _join(runner, _make_tokens(model, length, seed=length), probed=probed)
                if i == len(PROMPT_LENGTHS) - 1:
                    runner.leave(0)
            for step in range(STEPS_EACH):
                token_ids = _make_tokens(model, ways[0][0].num_rows, seed=10 * length + step)
                expected, watched, plain = (runner.decode(token_ids) for runner, _ in ways)
                first, second, _ = (_read_probe(runner) for runner, _ in ways)
                if not _are_equal(plain, expected):
                    return _Agreement(logits=False, probed=False)
                if not (_are_equal(watched, expected) and _read_the_same(first, second)):
                    same = same._replace(probed=False)
    except RuntimeError as error:
        logger.debug("the captured step fails: %s", error)
        return _Agreement(logits=False, probed=False)
    return same


def _read_probe(runner: Runner) -> ProbeReadout | None:
    """Return the readout of a step; None if there is none, or if it fails."""
    try:
        readout = runner.read_probe()
        return readout if isinstance(readout, ProbeReadout) else None
    except Exception as error:  # noqa: BLE001 - captured code: any failure means no
        logger.debug("a captured step's activations cannot be read: %s", error)
        return None


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _read_the_same(one: ProbeReadout | None, other: ProbeReadout | None) -> bool:
    if one is None or other is None:
        return False
    if (
        one.hidden is not None
        and other.hidden is not None
        and not _are_equal(one.hidden, other.hidden)
    ):
        return False
    return one.sources == other.sources


def _join(runner: Runner, token_ids: list[int], *, probed: bool = False) -> None:
    prompt = runner.start(token_ids, probed=probed)
    runner.prefill(prompt, len(token_ids), all_logits=False)
    runner.join(prompt)


def _make_tokens(model: Any, count: int, seed: int) -> list[int]:
    """Return ids spread over the vocabulary, the same for the same seed."""
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    return [(7919 * (seed * 31 + i) + 3) % vocabulary_size for i in range(count)]
