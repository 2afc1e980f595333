"""The strong proof: trains again between two checkpoints, and compares every tensor to the bit."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import torch

from whence.v1.training_pb2 import AttemptStarted, Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.engine.digests import digest_tensors
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import verified_run
from whence_server.training.recording import surroundings
from whence_server.training.train.train import continue_from
from whence_server.training.verify.comparison import tensor_findings
from whence_server.training.verify.findings import Finding, Report, Verdict
from whence_server.training.verify.verify import verify

# What `surroundings.determinism` reads off the arguments: the recipe's, and so the same.
_OF_ARGUMENTS = (
    "seed",
    "data_seed",
    "full_determinism",
    "bf16",
    "fp16",
    "tf32",
    "mixed_precision",
    "dataloader_num_workers",
)


def replay(report: Report, first_step: int, last_step: int) -> None:
    """Train again from one checkpoint's step to another's, and adds to the report what differs.

    Nothing is written but in a temporary directory. Where versions, hardware or settings are not
    those on record, notes say so: other bits are then no proof of a false record.

    Args:
        report: of a model with a record.
        first_step: where to begin: after the checkpoint of this step, or 0 for the beginning.
        last_step: the checkpoint whose tensors on record the result is held to.

    Raises:
        ConfigurationError: it cannot be made: the run is not one of `whence-server train`, or the
            record has no such checkpoint.
        LineageError: a text has changed since; the message names it.
    """
    if report.record is None or not report.head:
        raise ConfigurationError(f"{report.directory}: without a record nothing can be replayed")
    run = verified_run(report.record)
    if not run.started.recipe_json:
        raise ConfigurationError(
            f"run {run.started.training_run_id} cannot be trained again: its record has no recipe, "
            "as only those of `whence-server train` have"
        )
    target = _checkpoint(run, last_step)
    directory = _start(run, first_step)
    with tempfile.TemporaryDirectory(prefix="whence-replay-") as place, redirect_stdout(sys.stderr):
        model = continue_from(run.path.absolute(), directory, last_step, Path(place))
    found = digest_tensors(model.state_dict())
    differences = list(tensor_findings(target, found))
    report.notes += _surroundings_that_differ(_attempt(run, target.attempt), model.device)
    num_equal = len(target.tensors) - len({it.name for it in differences})
    report.replay = (
        f"steps {first_step + 1} to {last_step} trained again: {num_equal} of "
        f"{len(target.tensors)} tensors are the same to the bit"
    )
    report.findings += [
        Finding("replay", it.name, f"trained again, {it.problem}", it.expected, it.found)
        for it in differences
    ]
    if differences:
        report.verdict = Verdict.NOT_VERIFIED


def _checkpoint(run: TrainingRun, step: int) -> Checkpoint:
    found = [c for c in run.counting_checkpoints() if c.step == step]
    if not found:
        known = sorted({c.step for c in run.counting_checkpoints()})
        raise ConfigurationError(
            f"--replay: the record has no checkpoint of step {step}; it has "
            f"{', '.join(map(str, known)) or 'none'}"
        )
    return found[-1]


def _start(run: TrainingRun, step: int) -> Path | None:
    """The checkpoint to go on from, once it is known to be what the record says."""
    if not step:
        return None
    _checkpoint(run, step)
    resumable = [c for c in run.counting_checkpoints() if c.step == step and c.resumable]
    if not resumable:
        raise ConfigurationError(
            f"--replay: no training can go on from step {step}: weights alone were saved then"
        )
    directory = run.directory_of(resumable[-1])
    if not directory.is_dir():
        raise ConfigurationError(f"--replay: the checkpoint of step {step}, {directory}, is gone")
    report = verify(directory, run.path)
    if report.verdict is not Verdict.VERIFIED:
        told = "; ".join(map(str, report.findings[:3]))
        raise ConfigurationError(
            f"--replay: the checkpoint of step {step} is not as recorded: {told}"
        )
    return directory.absolute()


def _attempt(run: TrainingRun, number: int) -> AttemptStarted:
    """One of a run's attempts; an empty one where it is not on record."""
    return next((it for it in run.attempts if it.attempt == number), AttemptStarted())


def _surroundings_that_differ(attempt: AttemptStarted, device: torch.device) -> Iterator[str]:
    recorded = attempt.determinism
    arguments = SimpleNamespace(**{name: recorded.get(name) for name in _OF_ARGUMENTS})
    for what, then, now in (
        ("version", attempt.versions, surroundings.versions()),
        ("hardware", attempt.hardware, surroundings.hardware(device)),
        ("determinism", recorded, surroundings.determinism(arguments)),
    ):
        yield from _differences(what, then, now)


def _differences(what: str, then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, "absent"), now.get(name, "absent")
        if before != after:
            yield f"replayed with another {what}: {name} was {before}, is {after}"
