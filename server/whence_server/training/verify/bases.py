"""Comparison of an adapter's base model with the record."""

from pathlib import Path

from whence.v1.training_pb2 import ParentModel
from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.run import TrainingRun
from whence_server.training.recording import adapter_files, contents
from whence_server.training.verify.findings import Finding, Report


def verify_base(report: Report, run: TrainingRun, directory: Path, given: Path | None) -> None:
    """Compare an adapter's base model with the record, if it is found.

    Args:
        report: report to extend.
        run: run that trained the adapter.
        directory: directory of the adapter.
        given: directory of the base model; None searches where record and adapter name it.
    """
    base = run.started.adapter_base
    place = find_base(run, directory, given)
    known = f"weights digest {base.weights_digest}"
    if place is None:
        report.base = f"{base.source or 'not named'} is not here; on record: {known}"
        report.notes.append("the base model of the adapter was not checked: give it with --base")
        return
    if not is_recorded(base, place, run.started.architecture):
        found = _digest_weights(place, run.started.architecture)
        finding = Finding("base", str(place), "changed", base.weights_digest, found)
        report.findings.append(finding)
        return
    report.base = f"{place} as recorded; {known}"


def find_base(run: TrainingRun, directory: Path, given: Path | None) -> Path | None:
    """Return the directory of the base model of a run's adapter; None if it is not found.

    Raises:
        ConfigurationError: the given directory holds no weights.
    """
    if given is not None:
        if not contents.has_weights(given):
            raise ConfigurationError(f"--base {given} holds no weights; give a model's directory")
        return given
    for named in (run.started.adapter_base.source, adapter_files.read_base_name(directory)):
        if named and contents.has_weights(Path(named)):
            return Path(named)
    return None


def is_recorded(base: ParentModel, directory: Path, architecture: str) -> bool:
    """Return whether a directory holds the recorded base, by its files or by its tensors."""
    files = {file.path: file.sha256 for file in base.files}
    found = contents.digest_existing_files(directory, list(files))
    if files and all(name in found and found[name].sha256 == files[name] for name in files):
        return True
    return _digest_weights(directory, architecture) == base.weights_digest


def _digest_weights(directory: Path, architecture: str) -> str:
    try:
        return contents.digest_weights(directory, architecture, None).weights_digest
    except ConfigurationError as error:
        return str(error)
