"""The explained value of a target, by a whole pass over each context: the slow way."""

from collections.abc import Sequence
from typing import Any

import torch

from whence_server.explain.segments import Segment
from whence_server.explain.target import Target


@torch.inference_mode()
def read_whole(
    model: Any, target: Target, segments: Sequence[Segment], kept: Sequence[bool], *, hides: bool
) -> float:
    """Return the explained value while segments are removed, or hidden by the attention mask."""
    gone = {
        i
        for segment, stays in zip(segments, kept, strict=True)
        if not stays
        for i in range(*segment)
    }

    def read(ending: Sequence[int]) -> float:
        ids = [*target.context, *ending]
        seen = [i for i in range(len(ids)) if hides or i not in gone]
        mask = [int(i not in gone) for i in seen]
        arguments: dict[str, Any] = {}
        if hides:
            arguments["attention_mask"] = torch.tensor([mask])
            arguments["position_ids"] = torch.tensor([seen])
        logits = model(input_ids=torch.tensor([[ids[i] for i in seen]]), **arguments).logits[0]
        logprobs = logits.double().log_softmax(-1)[-len(ending) - 1 : -1]
        return float(logprobs[range(len(ending)), list(ending)].sum())

    value = read(target.span)
    return value - read(target.against) if target.against else value
