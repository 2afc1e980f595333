"""What each process did in a step, and all of that together in the process that writes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_MASK = "attention_mask"


class RankStep(NamedTuple):
    """What one process did in one step."""

    example_ids: list[int]
    """Empty where those of some batch are not known."""
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
        self._ids: list[torch.Tensor | None] = []
        self._num_tokens: list[torch.Tensor | int] = []
        self._losses: list[Any] = []

    def add_pass(self, ids: torch.Tensor | None, num_tokens: torch.Tensor | int, loss: Any) -> None:
        """A batch went forward and backward; its numbers stay where they are until the step."""
        self._ids.append(ids)
        self._num_tokens.append(num_tokens)
        self._losses.append(loss)

    def of_this_rank(self) -> RankStep:
        """The step, now that it is made."""
        known = [ids for ids in self._ids if ids is not None]
        return RankStep(
            example_ids=[number for ids in known for number in ids.tolist()]
            if len(known) == len(self._ids)
            else [],
            num_micro_batches=len(self._ids),
            num_tokens=int(sum(self._num_tokens)),
            loss=float(sum(number(loss) for loss in self._losses)),
        )


def number(value: Any) -> float:
    """A number, or a tensor of one; not a number where it is neither."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return float("nan")


def num_tokens(inputs: Any, model: Any) -> torch.Tensor | int:
    """Input tokens of a batch; padding does not count where attention masks tell it.

    0 where the batch is no dictionary, or has no tokens by a name that is known, or a mask of its
    own kind that cannot be counted.
    """
    try:
        return _num_tokens(inputs, model)
    except Exception:  # noqa: BLE001 - a batch of any kind: it is trained on all the same
        return 0


def _num_tokens(inputs: Any, model: Any) -> torch.Tensor | int:
    if not hasattr(inputs, "get") or not hasattr(inputs, "items"):
        return 0
    masks = list(_masks(inputs))
    if masks:
        # Of a mask that is added to scores, no token counts: 0 there is one that is seen.
        return torch.stack([(mask > 0).sum() for mask in masks]).sum()
    for name in ("input_ids", getattr(model, "main_input_name", "input_ids")):
        tokens = inputs.get(name)
        if isinstance(tokens, torch.Tensor):
            return tokens.numel()
    return 0


def _masks(inputs: Any) -> Iterator[torch.Tensor]:
    """The attention mask, or those of several texts: "sentence_0_attention_mask", ..."""
    names = [_MASK] if isinstance(inputs.get(_MASK), torch.Tensor) else list(inputs)
    for name in names:
        mask = inputs.get(name) if isinstance(name, str) else None
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            continue
        if name.endswith(_MASK) and not name.startswith("decoder_"):
            yield mask


def gathered(mine: RankStep, args: Any) -> list[RankStep]:
    """Every process's step at rank 0, by rank; elsewhere nothing that counts."""
    if args.world_size == 1 or not dist.is_initialized():
        return [mine]
    ranks: list[Any] | None = [None] * args.world_size if dist.get_rank() == 0 else None
    dist.gather_object(mine, ranks, dst=0)
    return ranks or [mine]
