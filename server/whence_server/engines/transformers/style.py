"""Call style of a model's forward pass, as found by `batching_check.check_batching`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForwardStyle:
    """Arguments that a model's forward pass accepts.

    Attributes:
        num_layers: number of layers of the model's cache.
        position_ids: True if positions are passed; otherwise the model computes them.
        logits_to_keep: True if the model can return the last position's logits only.
        ready_mask: True if the model accepts additive masks [rows, 1, 1, columns], which saves
            building them in every step.
        windows: for each kind of layer, by transformers' name, the number of columns it sees;
            None for all.
    """

    num_layers: int
    position_ids: bool = True
    logits_to_keep: bool = True
    ready_mask: bool = True
    windows: tuple[tuple[str, int | None], ...] = (("full_attention", None),)
