"""A record that is read to its end at once, by whoever holds other things to it."""

from pathlib import Path
from typing import NamedTuple

from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import is_being_written
from whence_server.lineage.run import TrainingRun


class TornEnd(NamedTuple):
    """What follows a record's last whole entry."""

    num_bytes: int
    is_being_written: bool
    """Whether that is because an entry is just being written."""


def read_run(path: Path, *, with_tensors: bool = False) -> TrainingRun:
    """Read a record to its end.

    Args:
        path: the record's file.
        with_tensors: whether checkpoints keep the digests of their tensors.

    Raises:
        LineageError: it cannot be read, is not intact, or has no whole entry.
    """
    run = TrainingRun.open(path, with_tensors=with_tensors)
    if run is None:
        raise LineageError(f"{path} is not an intact record: it has no whole entry")
    return run


def verified_run(path: Path) -> TrainingRun:
    """Read a record, tensors' digests included, and holds its documents to their Merkle root.

    Raises:
        LineageError: as `read_run`; or its documents do not make the root.
    """
    run = read_run(path, with_tensors=True)
    run.training_set.require_merkle_root()
    return run


def torn_end(run: TrainingRun) -> TornEnd:
    """What follows the last whole entry of a run's record; reads on where there is more.

    Raises:
        LineageError: as `read_run`.
    """
    num_bytes = run.num_bytes_beyond()
    if num_bytes and is_being_written(run.path):
        return TornEnd(num_bytes, is_being_written=True)
    if num_bytes:
        # Whoever wrote it may have ended since: now nothing changes any more.
        run.refresh()
    return TornEnd(run.num_bytes_beyond(), is_being_written=False)
