"""Records a model's decoding step, and trusts it only if its logits are the model's to the bit."""

import logging
import time
from typing import Any

import torch

from whence_server.engine.runner import Runner
from whence_server.engine.step_graph import NotRecordableError, StepGraph
from whence_server.engine.style import ForwardStyle

logger = logging.getLogger(__name__)

LONG_STEP_S = 0.25
"""A step that computes for so long hides what Python adds to it, and takes as long to check."""
PROMPT_LENGTHS = (3, 7, 2, 12)
STEPS_EACH = 2


def recorded(model: Any, style: ForwardStyle) -> StepGraph | None:
    """The model's decoding step as a graph; None where its modules have to do the work."""
    name = type(model).__name__
    try:
        graph = _record(model, style)
    except NotRecordableError as obstacle:
        logger.info("%s decodes through its modules: %s", name, obstacle)
        return None
    if not _same_logits(model, style, graph):
        logger.warning("%s decodes through its modules: recorded, its logits differ", name)
        return None
    return graph


@torch.inference_mode()
def _record(model: Any, style: ForwardStyle) -> StepGraph:
    runner = Runner(model, style)
    for length in PROMPT_LENGTHS[:2]:
        _join(runner, _tokens(model, length, seed=0))
    started = time.monotonic()
    runner.decode(_tokens(model, 2, seed=1))
    runner.synchronize()
    step_s = time.monotonic() - started
    if step_s > LONG_STEP_S:
        raise NotRecordableError(f"a step takes {step_s:.1f} s, next to which they cost nothing")
    return StepGraph.record(model, style, runner.step_inputs(_tokens(model, 2, seed=2)))


def _same_logits(model: Any, style: ForwardStyle, graph: StepGraph) -> bool:
    """Compares batches that grow and shrink, over contexts of many lengths and other tokens."""
    runners = Runner(model, style), Runner(model, style, graph)
    try:
        for i, length in enumerate(PROMPT_LENGTHS):
            for runner in runners:
                _join(runner, _tokens(model, length, seed=length))
                if i == len(PROMPT_LENGTHS) - 1:
                    runner.leave(0)
            for step in range(STEPS_EACH):
                token_ids = _tokens(model, runners[0].num_rows, seed=10 * length + step)
                expected, logits = (runner.decode(token_ids) for runner in runners)
                if not torch.allclose(logits, expected, rtol=0, atol=0, equal_nan=True):
                    return False
    except RuntimeError as error:
        logger.debug("the recorded step fails: %s", error)
        return False
    return True


def _join(runner: Runner, token_ids: list[int]) -> None:
    prompt = runner.start(token_ids)
    runner.prefill(prompt, len(token_ids), all_logits=False)
    runner.join(prompt)


def _tokens(model: Any, count: int, seed: int) -> list[int]:
    """Ids from all over the vocabulary, always the same."""
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    return [(7919 * (seed * 31 + i) + 3) % vocabulary_size for i in range(count)]
