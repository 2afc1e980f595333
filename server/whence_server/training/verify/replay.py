"""Verification by training again between two checkpoints, with bitwise comparison of tensors."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import torch

from whence.v1.training_pb2 import AttemptStarted, Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.digests import digest_tensors
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_verified_run
from whence_server.training.recording import surroundings
from whence_server.training.train.train import continue_from
from whence_server.training.verify.comparison import compare_tensors
from whence_server.training.verify.findings import Finding, Report, Verdict
from whence_server.training.verify.verify import verify

# Settings that `surroundings.collect_determinism_settings` reads from the training's arguments,
# which the recipe determines.
_ARGUMENT_SETTINGS = (
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
    """Train again from one checkpoint's step to another's, and report the differences.

    Files are written to a temporary directory only. Notes name versions, hardware and settings that
    differ from the record, as with them a difference does not prove that the record is false.

    Args:
        report: report to extend, of a model with a record.
        first_step: step of the checkpoint to begin from; 0 for the run's beginning.
        last_step: step of the checkpoint whose recorded tensors are compared.

    Raises:
        ConfigurationError: the run is not one of `whence-server train`, or the record lacks one of
            the checkpoints.
        LineageError: a text has changed; the message names it.
    """
    if report.record is None or not report.head:
        raise ConfigurationError(f"{report.directory}: without a record nothing can be replayed")
    run = read_verified_run(report.record)
    if not run.started.recipe_json:
        raise ConfigurationError(
            f"run {run.started.training_run_id} cannot be trained again: its record has no recipe, "
            "as only those of `whence-server train` have"
        )
    target = _find_checkpoint(run, last_step)
    directory = _find_start(run, first_step)
    with tempfile.TemporaryDirectory(prefix="whence-replay-") as place, redirect_stdout(sys.stderr):
        model = continue_from(run.path.absolute(), directory, last_step, Path(place))
    found = digest_tensors(model.state_dict())
    differences = list(compare_tensors(target, found))
    report.notes += _compare_surroundings(_find_attempt(run, target.attempt), model.device)
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


def _find_checkpoint(run: TrainingRun, step: int) -> Checkpoint:
    found = [c for c in run.list_counting_checkpoints() if c.step == step]
    if not found:
        known = sorted({c.step for c in run.list_counting_checkpoints()})
        raise ConfigurationError(
            f"--replay: the record has no checkpoint of step {step}; it has "
            f"{', '.join(map(str, known)) or 'none'}"
        )
    return found[-1]


def _find_start(run: TrainingRun, step: int) -> Path | None:
    """Return the directory of the checkpoint to begin from, after verifying it."""
    if not step:
        return None
    _find_checkpoint(run, step)
    resumable = [c for c in run.list_counting_checkpoints() if c.step == step and c.resumable]
    if not resumable:
        raise ConfigurationError(
            f"--replay: no training can resume from step {step}, as only weights were saved there"
        )
    directory = run.resolve_directory(resumable[-1])
    if not directory.is_dir():
        raise ConfigurationError(
            f"--replay: the checkpoint of step {step}, {directory}, is missing"
        )
    report = verify(directory, run.path)
    if report.verdict is not Verdict.VERIFIED:
        told = "; ".join(map(str, report.findings[:3]))
        raise ConfigurationError(
            f"--replay: the checkpoint of step {step} is not as recorded: {told}"
        )
    return directory.absolute()


def _find_attempt(run: TrainingRun, number: int) -> AttemptStarted:
    """Return the attempt with this number; an empty message if it is not on record."""
    return next((it for it in run.attempts if it.attempt == number), AttemptStarted())


def _compare_surroundings(attempt: AttemptStarted, device: torch.device) -> Iterator[str]:
    recorded = attempt.determinism
    arguments = SimpleNamespace(**{name: recorded.get(name) for name in _ARGUMENT_SETTINGS})
    for what, then, now in (
        ("version", attempt.versions, surroundings.collect_versions()),
        ("hardware", attempt.hardware, surroundings.describe_hardware(device)),
        ("determinism", recorded, surroundings.collect_determinism_settings(arguments)),
    ):
        yield from _describe_differences(what, then, now)


def _describe_differences(
    what: str, then: Mapping[str, str], now: Mapping[str, str]
) -> Iterator[str]:
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, "absent"), now.get(name, "absent")
        if before != after:
            yield f"replayed with another {what}: {name} was {before}, is {after}"
