"""The model that a training made, as its record has it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from whence.v1 import training_pb2 as pb
from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_run


class TrainedModel(NamedTuple):
    """A run, and the newest checkpoint that it saved in the directory of its record."""

    run: TrainingRun
    checkpoint: pb.Checkpoint

    @property
    def name(self) -> str:
        """Name of the run; of its directory if it has none."""
        return self.run.started.name or self.run.path.parent.resolve().name

    def parse_settings(self, spelled: str) -> Any:
        """Return the values of settings on record, JSON. Raises LineageError if it is none."""
        try:
            return json.loads(spelled or "{}")
        except (ValueError, RecursionError) as error:
            raise LineageError(
                f"{self.run.path}: its settings of the training are no JSON: {error}"
            ) from None


def read_trained(directory: Path) -> TrainedModel:
    """Read the record in a model's directory, and check its documents against their root.

    Raises:
        LineageError: there is none, it is not intact, its documents have another Merkle root than
            is on record, or it has no model in this directory.
    """
    run = read_run(directory / RECORD_NAME)
    run.training_set.require_merkle_root()
    for checkpoint in reversed(run.list_counting_checkpoints()):
        if checkpoint.path in {"", "."} and checkpoint.files:
            return TrainedModel(run, checkpoint)
    raise LineageError(
        f"{run.path}: the run has saved no model beside its record; let the training end"
    )
