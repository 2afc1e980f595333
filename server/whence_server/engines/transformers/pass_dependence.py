"""Quantized layers whose results depend on how tokens are divided into forward passes.

LLM.int8 (bitsandbytes) multiplies a column of activations in half precision if any row of the pass
has an outlier in it, so that a token's result depends on the other tokens of its pass. Layers that
round activations (to int8 or FP8 in compressed-tensors, torchao and others; from float32 to half
precision in 4-bit layers of bitsandbytes on some processors) turn the last bit, which differs
between passes of different shapes, into a step of the rounding. Only `generate`'s own passes then
give `generate`'s tokens: the prompt whole, then one token at a time. These layers are found by
calling them and not by name.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig

logger = logging.getLogger(__name__)

NUM_ROWS = 8
"""Number of rows that are compared beside an ordinary row and beside one with outliers."""
OUTLIER = 100.0
"""Far above LLM.int8's usual threshold of 6, and within the range of half precision."""
SMALL = 2.0**-6
"""An activation beside one of 1."""
CHANGE = {torch.float32: 2.0**-18}
"""A change of it that the model's dtype holds, and half precision does not, in which layers of
bitsandbytes may compute."""
CHANGE_IN_HALF = 2.0**-12
"""The change for other dtypes: they hold it, but it is a fraction of a step of int8 and of FP8."""
NUM_NEW = 3
"""Number of tokens that are generated for the comparison with `generate`."""
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def find_pass_dependence(model: Any) -> str:
    """Return the reason why results depend on the division into passes; "" if they do not.

    Layers of plain tensors are not called. Layers without a number of input features, such as
    fused experts, are not looked at.
    """
    candidates = list(_list_candidates(model))
    if candidates:
        # compressed-tensors unpacks the weights in the model's first pass.
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
    for name, module in candidates:
        try:
            reason = _test_layer(module, model.dtype, model.device)
        except Exception as error:  # noqa: BLE001 - code of others: any failure is possible
            logger.debug("%s cannot be called alone: %r", name, error)
            continue
        if reason:
            return f"its layer {name} ({type(module).__name__}) {reason}"
    return ""


def _list_candidates(model: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield linear layers that do more than multiply by a plain tensor."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "in_features", None), int) and not _is_plain(module):
            yield name, module


def _is_plain(module: torch.nn.Module) -> bool:
    return (
        type(module) is torch.nn.Linear
        and "forward" not in vars(module)  # compressed-tensors puts its own there
        and not module._forward_pre_hooks  # noqa: SLF001 - torch has no accessor
        and not module._forward_hooks  # noqa: SLF001 - torch has no accessor
        and type(module.weight) in _PLAIN
        and type(module.weight.data) in _PLAIN  # torchao quantizes in a type of tensor
    )


@torch.inference_mode()
def _test_layer(module: Any, dtype: torch.dtype, device: torch.device) -> str:
    """Return what makes a layer's results depend on the pass; "" if nothing does."""
    rows = torch.randn(
        (1, NUM_ROWS + 1, module.in_features), generator=torch.Generator().manual_seed(0)
    )
    rows = rows.clamp(-2, 2).to(device, dtype)
    beside = rows.clone()
    beside[:, -1, ::4] = OUTLIER
    # Both passes have one shape, so that rows that are computed independently are equal.
    alone, others = (module(each)[:, :-1].float() for each in (rows, beside))
    if not torch.allclose(alone, others, rtol=0, atol=1e-6 * float(alone.abs().max())):
        return "computes a token in another way beside tokens with outliers"
    num_changed = min(NUM_ROWS, module.in_features - 1)
    base = torch.full((1, num_changed, module.in_features), SMALL)
    base[:, :, 0] = 1
    changed = base.clone()
    for row in range(num_changed):
        changed[0, row, row + 1] += CHANGE.get(dtype, CHANGE_IN_HALF)
    # A kernel may compute two rows of one pass in different ways, but not one row of two passes.
    before, after = (module(each.to(device, dtype))[0] for each in (base, changed))
    num_equal = sum(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return "rounds activations" if num_equal > num_changed // 2 else ""


@torch.inference_mode()
def list_reference_passes(model: Any, token_ids: list[int]) -> tuple[list[int], list[torch.Tensor]]:
    """Return tokens that `generate` adds to a prompt, and the logits [V] of each of its passes.

    Raises:
        Exception: `generate` fails.
    """
    input_ids = torch.tensor([token_ids], device=model.device)
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=GenerationConfig(
            max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0
        ),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[0, len(token_ids) :].tolist(), [each[0] for each in output.logits]
