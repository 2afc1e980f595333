"""The trainer's own data loader, over a dataset whose examples carry their ids."""

import sys
from collections.abc import Callable
from typing import Any

from whence_server.domain.errors import LineageError
from whence_server.training.tagging import TaggedCollator, tagged, untagged
from whence_server.training.wrapping import wrap


def tagged_loader(trainer: Any, get: Callable[[], Any]) -> Any:
    """What the trainer makes of its tagged dataset; to everybody else it stays what it was.

    Args:
        trainer: whose dataset and collator are changed for the time of the call.
        get: its `get_train_dataloader`.

    Raises:
        LineageError: the dataset's examples cannot be told apart once they are sharded.
    """
    dataset, collator = trainer.train_dataset, trainer.data_collator
    if dataset is None:
        return get()
    _require_known_sharding(dataset, trainer)
    plain = dataset
    if _is_of_datasets(dataset, "Dataset"):
        # From these the trainer removes columns before, not in the collator.
        plain = trainer._remove_unused_columns(dataset, description="Training")  # noqa: SLF001
    wraps: dict[str, Callable[..., Any]] = {
        "_get_collator_with_removed_columns": lambda original, inner, description=None: (
            TaggedCollator(original(_inner(inner), description))
        ),
        # Samplers look at the dataset's items themselves.
        "_get_train_sampler": lambda original, data=None: original(untagged(data)),
    }
    trainer.train_dataset, trainer.data_collator = tagged(plain), TaggedCollator(collator)
    undo = [wrap(trainer, method, around) for method, around in wraps.items()]
    try:
        return get()
    finally:
        trainer.train_dataset, trainer.data_collator = dataset, collator
        for restore in undo:
            restore()


def _inner(collator: Any) -> Any:
    return collator.collator if isinstance(collator, TaggedCollator) else collator


def _is_of_datasets(dataset: Any, kind: str) -> bool:
    """Whether it is of one of the classes of `datasets`, which need not be installed."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, getattr(datasets, kind))


def _require_known_sharding(dataset: Any, trainer: Any) -> None:
    """Accelerate shards streams of `datasets` by their class, which a wrapper does not have."""
    dispatches = trainer.args.accelerator_config.dispatch_batches
    is_stream = _is_of_datasets(dataset, "IterableDataset")
    if trainer.args.world_size > 1 and is_stream and dispatches is False:
        raise LineageError(
            "a datasets.IterableDataset that each process reads for itself cannot be recorded; "
            "leave dispatch_batches out of accelerator_config"
        )
