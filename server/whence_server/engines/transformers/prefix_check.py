"""Check, at load, that a model gives the same logits with the prefix cache as without it."""

import logging
from typing import Any

from whence_server.engines.transformers.batching_check import are_alike, make_prompts, run_plain
from whence_server.engines.transformers.prefix_cache import PrefixCache
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.style import ForwardStyle

logger = logging.getLogger(__name__)


def reuses_prefixes(model: Any, style: ForwardStyle | None) -> bool:
    """Return whether the model's logits are the same with a prefix cache.

    A prompt is read, one token decoded, and another prompt read that begins with both. Its logits
    are compared with those of a plain forward pass.

    Args:
        model: as loaded.
        style: call style of the model for a batch; None if it cannot be batched.
    """
    if style is None:
        obstacle = "it decodes each sequence by itself"
    elif not _reads_on_after_a_prefix(model, style):
        obstacle = "its logits differ between a prompt and one whose beginning was read before"
    else:
        return True
    logger.info("%s has no prefix cache: %s", type(model).__name__, obstacle)
    return False


def _reads_on_after_a_prefix(model: Any, style: ForwardStyle) -> bool:
    token_ids, _ = make_prompts(model)
    begin, other = token_ids[:-2], [*token_ids[:-1], token_ids[0]]
    try:
        runner = Runner(model, style, prefixes=PrefixCache(len(token_ids), block_tokens=2))
        prompt = runner.start(begin)
        runner.prefill(prompt, len(begin), all_logits=False)
        runner.join(prompt)
        runner.decode([token_ids[-2]])
        runner.keep_row(0, token_ids[:-1], "")
        runner.clear()
        prompt = runner.start(other)
        runner.reuse_prefix(prompt, "")
        if prompt.num_cached != len(token_ids) - 1:
            return False
        logits = runner.prefill(prompt, prompt.num_left, all_logits=False)
    except Exception as error:  # noqa: BLE001 - code of others: any failure means no
        logger.debug("%s cannot reuse a prefix: %s", type(model).__name__, error)
        return False
    return are_alike(model, logits[-1], run_plain(model, other)[-1])
