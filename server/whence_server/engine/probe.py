"""What a model's forward pass accepts: read from its signature and config, then tried out.

Trying is what makes the answer trustworthy for any architecture: two prompts of different
length, one of them read in two chunks, take a step together, and the logits have to be those of
a plain forward pass over each. A model that numbers its columns in a way of its own, looks at
later tokens, or loses its state between chunks is found out before it serves anyone.
"""

import inspect
import logging
from typing import Any

import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from whence_server.domain.errors import ConfigurationError
from whence_server.engine.runner import ForwardStyle, Runner

logger = logging.getLogger(__name__)

SAME_EVERYWHERE = {"full_attention"}
ATTENTION = SAME_EVERYWHERE | {"sliding_attention"}


def examine(model: Any) -> ForwardStyle:
    """Finds the fastest way to call the model that gives the right logits.

    Raises:
        ConfigurationError: its sequences cannot be decoded together.
    """
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    layer_types, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    other = sorted(set(layer_types) - ATTENTION)
    if getattr(model, "_is_stateful", False) or "past_key_values" not in parameters or other:
        kind = f"{', '.join(other)} layers" if other else "a recurrent state"
        raise ConfigurationError(
            f"{name} has {kind}: models that do not keep all keys and values of plain or "
            "sliding-window attention are not offered yet"
        )
    for ready_mask in (True, False):
        if ready_mask and not set(layer_types) <= SAME_EVERYWHERE:
            continue
        style = ForwardStyle(
            num_layers=len(layer_types),
            position_ids="position_ids" in parameters,
            logits_to_keep="logits_to_keep" in parameters,
            ready_mask=ready_mask,
        )
        if _works(model, style):
            return style
    raise ConfigurationError(
        f"{name} gives other logits for a batch of two prompts than for each alone: "
        "models that cannot be batched are not offered yet"
    )


def _works(model: Any, style: ForwardStyle) -> bool:
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    long, short = ([(7 * i + 3) % vocabulary_size for i in range(n)] for n in (7, 3))
    try:
        runner = Runner(model, style)
        for token_ids, chunks in ((long, (4, 2)), (short, (2,))):
            prompt = runner.start(token_ids[:-1])
            for num_tokens in chunks:
                runner.prefill(prompt, num_tokens, all_logits=False)
            runner.join(prompt)
        together = runner.decode([long[-1], short[-1]])
    except Exception as error:  # noqa: BLE001 - foreign code, tried out: any failure means no
        logger.debug("%s does not take %s: %s", type(model).__name__, style, error)
        return False
    return all(
        _alike(logits, _plain(model, token_ids))
        for logits, token_ids in zip(together, (long, short), strict=True)
    )


@torch.inference_mode()
def _plain(model: Any, token_ids: list[int]) -> torch.Tensor:
    input_ids = torch.tensor([token_ids], device=model.device)
    return model(input_ids=input_ids, use_cache=False).logits[0, -1]


def _alike(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for rounding, which is measured against the largest logit; NaN equals NaN."""
    tolerance = 1e-3 if expected.dtype is torch.float32 else 1e-1
    scale = float(expected.nan_to_num().abs().max())
    return torch.allclose(logits, expected, rtol=0, atol=tolerance * scale, equal_nan=True)
