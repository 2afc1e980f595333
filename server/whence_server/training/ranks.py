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


class StepSoFar:
    """What this process has done since its last optimizer step.

    Attributes:
        grad_norm: of the gradient before clipping; None where nobody has asked for it.
        learning_rate: of the step.
    """

    def __init__(self) -> None:
        self.grad_norm: Any = None
        self.learning_rate = 0.0
        self._ids: list[torch.Tensor] = []
        self._num_tokens: list[torch.Tensor | int] = []
        self._losses: list[torch.Tensor] = []

    def add_pass(
        self, ids: torch.Tensor, num_tokens: torch.Tensor | int, loss: torch.Tensor
    ) -> None:
        """A batch went forward and backward; its numbers stay where they are until the step."""
        self._ids.append(ids)
        self._num_tokens.append(num_tokens)
        self._losses.append(loss)

    def of_this_rank(self) -> RankStep:
        """The step, now that it is made."""
        return RankStep(
            example_ids=[number for ids in self._ids for number in ids.tolist()],
            num_micro_batches=len(self._ids),
            num_tokens=int(sum(self._num_tokens)),
            loss=float(sum(loss.item() for loss in self._losses)),
        )


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
