"""Work of each process in a step, and its collection at rank 0."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_MASK = "attention_mask"


class RankStep(NamedTuple):
    """Work of one process in one optimizer step."""

    example_ids: list[int]
    """Ids of the examples; empty if those of a batch are not known."""
    num_micro_batches: int
    num_tokens: int
    loss: float


class StepSoFar:
    """Work of this process since its last optimizer step.

    Attributes:
        grad_norm: norm of the gradient before clipping; None if it was not computed.
        learning_rate: learning rate of the step.
    """

    def __init__(self) -> None:
        self.grad_norm: Any = None
        self.learning_rate = 0.0
        self._ids: list[torch.Tensor | None] = []
        self._num_tokens: list[torch.Tensor | int] = []
        self._losses: list[Any] = []

    def add_pass(self, ids: torch.Tensor | None, num_tokens: torch.Tensor | int, loss: Any) -> None:
        """Add a batch after its backward pass; tensors stay on their device until the step."""
        self._ids.append(ids)
        self._num_tokens.append(num_tokens)
        self._losses.append(loss)

    def finish(self) -> RankStep:
        """Return the step's totals, after the optimizer step."""
        known = [ids for ids in self._ids if ids is not None]
        return RankStep(
            example_ids=[number for ids in known for number in ids.tolist()]
            if len(known) == len(self._ids)
            else [],
            num_micro_batches=len(self._ids),
            num_tokens=int(sum(self._num_tokens)),
            loss=float(sum(convert_to_float(loss) for loss in self._losses)),
        )


def convert_to_float(value: Any) -> float:
    """Convert a number or a one-element tensor to a float; return NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return float("nan")


def count_tokens(inputs: Any, model: Any) -> torch.Tensor | int:
    """Count the input tokens of a batch, without padding if there are attention masks.

    The count is 0 for a batch that is not a dictionary, or has no tokens under a known name.
    """
    try:
        return _count_in_batch(inputs, model)
    except Exception:  # noqa: BLE001 - a batch of any kind: it is trained on all the same
        return 0


def _count_in_batch(inputs: Any, model: Any) -> torch.Tensor | int:
    if not hasattr(inputs, "get") or not hasattr(inputs, "items"):
        return 0
    masks = list(_find_masks(inputs))
    if masks:
        # Of a mask that is added to scores, no token counts: 0 there is one that is seen.
        return torch.stack([(mask > 0).sum() for mask in masks]).sum()
    for name in ("input_ids", getattr(model, "main_input_name", "input_ids")):
        tokens = inputs.get(name)
        if isinstance(tokens, torch.Tensor):
            return tokens.numel()
    return 0


def _find_masks(inputs: Any) -> Iterator[torch.Tensor]:
    """Yield the attention mask, or the masks of several texts ("sentence_0_attention_mask")."""
    names = [_MASK] if isinstance(inputs.get(_MASK), torch.Tensor) else list(inputs)
    for name in names:
        mask = inputs.get(name) if isinstance(name, str) else None
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            continue
        if name.endswith(_MASK) and not name.startswith("decoder_"):
            yield mask


def gather_rank_steps(mine: RankStep, args: Any) -> list[RankStep]:
    """Return every process's step, by rank, at rank 0; other ranks ignore the result."""
    if args.world_size == 1 or not dist.is_initialized():
        return [mine]
    ranks: list[Any] | None = [None] * args.world_size if dist.get_rank() == 0 else None
    dist.gather_object(mine, ranks, dst=0)
    return ranks or [mine]
