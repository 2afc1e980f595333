"""Reading of a whole record at once, for verification and resumption."""

from pathlib import Path
from typing import NamedTuple

from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import is_being_written
from whence_server.lineage.run import TrainingRun


class TornEnd(NamedTuple):
    """Bytes after a record's last whole entry."""

    num_bytes: int
    is_being_written: bool
    """True if a process is writing the record, so that the entry may still be completed."""


def read_run(path: Path, *, with_tensors: bool = False) -> TrainingRun:
    """Read a record to its end.

    Args:
        path: the record's file.
        with_tensors: True if checkpoints keep the digests of their tensors.

    Raises:
        LineageError: the record cannot be read, is not intact, or has no whole entry.
    """
    run = TrainingRun.open(path, with_tensors=with_tensors)
    if run is None:
        raise LineageError(f"{path} is not an intact record: it has no whole entry")
    return run


def read_verified_run(path: Path) -> TrainingRun:
    """Read a record with the digests of tensors, and check its documents against the Merkle root.

    Raises:
        LineageError: the record cannot be read, is not intact, or has no whole entry; or its
            documents do not have the recorded root.
    """
    run = read_run(path, with_tensors=True)
    run.training_set.require_merkle_root()
    return run


def measure_torn_end(run: TrainingRun) -> TornEnd:
    """Measure the bytes after the last whole entry of a run's record, after reading new entries.

    Raises:
        LineageError: the record cannot be read, or is not intact.
    """
    num_bytes = run.count_bytes_beyond()
    if num_bytes and is_being_written(run.path):
        return TornEnd(num_bytes, is_being_written=True)
    if num_bytes:
        # The writer may have ended since the first look: the record no longer changes.
        run.refresh()
    return TornEnd(run.count_bytes_beyond(), is_being_written=False)
