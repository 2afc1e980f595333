"""How a model's forward pass is called; found out by `batching_check.check_batching`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForwardStyle:
    """What a model's forward pass accepts; see `batching_check.check_batching`.

    Attributes:
        num_layers: how many layers its cache has.
        position_ids: whether positions are given; otherwise the model has its own way.
        logits_to_keep: whether it can leave out the logits that nobody looks at.
        ready_mask: whether it takes additive masks [rows, 1, 1, columns] as they are, which saves
            building them in every step.
        windows: for each kind of layer, by transformers' name, how many columns it sees; None
            for all.
    """

    num_layers: int
    position_ids: bool = True
    logits_to_keep: bool = True
    ready_mask: bool = True
    windows: tuple[tuple[str, int | None], ...] = (("full_attention", None),)
