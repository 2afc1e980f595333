"""Capture of a model's decoding step, which is used only if its logits are bit-identical."""

import logging
import time
from typing import Any, NamedTuple

import torch

from whence_server.domain.model import StepKernels
from whence_server.engines.transformers.internals.probe import NO_PROBE, Probe
from whence_server.engines.transformers.internals.probed_rows import ProbeReadout
from whence_server.engines.transformers.packed_linears import can_pack, get_bound
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.step_graph import NotCapturableError, StepGraph, are_alike
from whence_server.engines.transformers.style import ForwardStyle

logger = logging.getLogger(__name__)

LONG_STEP_S = 0.25
"""Step time above which a graph is not worth capturing: Python's overhead is small beside it.

On the CPU it is the processor time of the computing thread, to which a busy machine adds nothing.
"""
NUM_TIMED_STEPS = 3
PROMPT_LENGTHS = (3, 7, 2, 12)
STEPS_EACH = 2


def capture_step(
    model: Any,
    style: ForwardStyle,
    probe: Probe = NO_PROBE,
    kernels: StepKernels = StepKernels.EXACT,
) -> StepGraph | None:
    """Return the model's decoding step as a graph; None if the modules have to run instead."""
    if can_pack(model, kernels):
        graph = _capture_valid(model, style, probe, packed=True)
        if graph is not None:
            return graph
    return _capture_valid(model, style, probe, packed=False)


def _capture_valid(
    model: Any, style: ForwardStyle, probe: Probe, *, packed: bool
) -> StepGraph | None:
    """Return the graph of a way to multiply; None if it has not the modules' logits."""
    name = type(model).__name__
    try:
        graph = _capture(model, style, probe, packed=packed)
    except NotCapturableError as obstacle:
        if not packed:
            logger.info("%s decodes through its modules: %s", name, obstacle)
        return None
    same = _compare(model, style, graph, probe, get_bound(model, packed=packed))
    if not same.logits:
        if packed:
            logger.info("%s decodes without packed weights: the logits differ", name)
        else:
            logger.warning(
                "%s decodes through its modules: the captured graph's logits differ", name
            )
        return None
    if graph.has_probe and not same.probed:
        logger.warning(
            "%s is probed through its modules: the captured graph's activations differ", name
        )
        return graph.drop_probe()
    return graph


@torch.inference_mode()
def capture_again(
    model: Any, style: ForwardStyle, probe: Probe, *, probed: bool, packed: bool
) -> StepGraph | None:
    """Return a graph that `capture_step` has found to be valid before, after comparing one step.

    Args:
        model: the same model under the same conditions.
        style: call style of the model.
        probe: the model's probe, which may be deferred; the graph with it is deferred, too.
        probed: whether the graph with the probe was found to be valid.
        packed: whether the graph with packed weights was.

    Returns:
        None if the graph cannot be captured, or differs from the modules.
    """
    runner = Runner(model, style)
    for length in PROMPT_LENGTHS[:2]:
        _join(runner, _make_tokens(model, length, seed=0))
    inputs = runner.take_step_inputs(_make_tokens(model, 2, seed=2))
    seen = probe if probed else NO_PROBE
    try:
        graph = StepGraph.capture(model, style, inputs, seen, packed=packed)
        bound = get_bound(model, packed=packed)
        return graph if graph.agrees(model, style, inputs, bound) else None
    except (NotCapturableError, RuntimeError) as error:
        logger.debug("the step cannot be captured again: %s", error)
        return None


class _Agreement(NamedTuple):
    """Results of a graph that are bit-identical with those of the modules.

    Attributes:
        logits: True if the logits of steps without probed rows are.
        probed: True if the logits and readouts of steps with probed rows are.
    """

    logits: bool
    probed: bool


@torch.inference_mode()
def _capture(model: Any, style: ForwardStyle, probe: Probe, *, packed: bool) -> StepGraph:
    runner = Runner(model, style)
    for length in PROMPT_LENGTHS[:2]:
        _join(runner, _make_tokens(model, length, seed=0))
    step_s = _time_step(runner, _make_tokens(model, 2, seed=1))
    if step_s > LONG_STEP_S:
        raise NotCapturableError(f"a step takes {step_s:.1f} s, so that a graph would save little")
    inputs = runner.take_step_inputs(_make_tokens(model, 2, seed=2))
    graph = StepGraph.capture(model, style, inputs, probe, packed=packed)
    graph.complete()
    return graph


def _time_step(runner: Runner, token_ids: list[int]) -> float:
    """Return the time of the fastest of several steps, in seconds; the first ones may be slow."""
    measure = time.thread_time if runner.is_on_cpu else time.monotonic
    durations: list[float] = []
    while len(durations) < NUM_TIMED_STEPS and (not durations or min(durations) > LONG_STEP_S):
        started = measure()
        runner.decode(token_ids)
        runner.synchronize()
        durations.append(measure() - started)
    return min(durations)


def _compare(
    model: Any, style: ForwardStyle, graph: StepGraph, probe: Probe, bound: float
) -> _Agreement:
    """Compare graph and modules over batches that grow and shrink, with prompts of several lengths.

    The graph runs both with and without probed rows, the modules with probed rows. With a bound
    above 0, graph and modules may differ by it; the probe must not change the graph's logits.
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
                if not are_alike(plain, expected, bound):
                    return _Agreement(logits=False, probed=False)
                if not (are_alike(watched, plain, 0.0) and _read_alike(first, second, bound)):
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


def _read_alike(one: ProbeReadout | None, other: ProbeReadout | None, bound: float) -> bool:
    if one is None or other is None:
        return False
    if (
        one.hidden is not None
        and other.hidden is not None
        and not are_alike(one.hidden, other.hidden, bound)
    ):
        return False
    # With rounding, sources of about the same share may change places.
    return bound > 0 or one.sources == other.sources


def _join(runner: Runner, token_ids: list[int], *, probed: bool = False) -> None:
    prompt = runner.start(token_ids, probed=probed)
    runner.prefill(prompt, len(token_ids), all_logits=False)
    runner.join(prompt)


def _make_tokens(model: Any, count: int, seed: int) -> list[int]:
    """Return ids spread over the vocabulary, the same for the same seed."""
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    return [(7919 * (seed * 31 + i) + 3) % vocabulary_size for i in range(count)]
