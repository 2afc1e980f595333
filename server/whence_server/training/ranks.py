"""What each process did in a step, and all of that together in the process that writes."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist


class RankStep(NamedTuple):
    """What one process did in one step."""

    example_ids: list[int]
    num_micro_batches: int
    num_tokens: int
    loss: float


def num_tokens(inputs: Any, model: Any) -> torch.Tensor | int:
    """Input tokens of a batch; padding does not count where an attention mask tells it."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return mask.sum()
    for name in ("input_ids", getattr(model, "main_input_name", "input_ids")):
        tokens = inputs.get(name)
        if isinstance(tokens, torch.Tensor):
            return tokens.numel()
    return 0


def gathered(mine: RankStep, args: Any) -> list[RankStep]:
    """Every process's step at rank 0, by rank; elsewhere nothing that counts."""
    if args.world_size == 1 or not dist.is_initialized():
        return [mine]
    ranks: list[Any] | None = [None] * args.world_size if dist.get_rank() == 0 else None
    dist.gather_object(mine, ranks, dst=0)
    return ranks or [mine]
