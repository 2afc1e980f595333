"""The model below an adapter: found where it is named, and held to the record."""

from pathlib import Path

from whence.v1.training_pb2 import ParentModel
from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.run import TrainingRun
from whence_server.training.recording import adapter_files, contents
from whence_server.training.verify.findings import Finding, Report


def verify_base(report: Report, run: TrainingRun, directory: Path, given: Path | None) -> None:
    """Hold the model below an adapter to the record, where it can be found.

    Args:
        report: gets what is found out.
        run: whose record.
        directory: the adapter's.
        given: where the model lies; None looks where the record and the adapter name it.
    """
    base = run.started.adapter_base
    place = find_base(run, directory, given)
    known = f"weights digest {base.weights_digest}"
    if place is None:
        report.base = f"{base.source or 'not named'} is not here; on record: {known}"
        report.notes.append("the model below the adapter was not checked: give it with --base")
        return
    if not is_recorded(base, place, run.started.architecture):
        found = _digest(place, run.started.architecture)
        finding = Finding("base", str(place), "changed", base.weights_digest, found)
        report.findings.append(finding)
        return
    report.base = f"{place} as recorded; {known}"


def find_base(run: TrainingRun, directory: Path, given: Path | None) -> Path | None:
    """The directory of the model below a run's adapter; None where it is not found.

    Raises:
        ConfigurationError: the one that was given is not there.
    """
    if given is not None:
        if not contents.has_weights(given):
            raise ConfigurationError(f"--base {given} holds no weights; give a model's directory")
        return given
    for named in (run.started.adapter_base.source, adapter_files.base_named_in(directory)):
        if named and contents.has_weights(Path(named)):
            return Path(named)
    return None


def is_recorded(base: ParentModel, directory: Path, architecture: str) -> bool:
    """Whether a directory holds the model on record: by its files, or else by its tensors."""
    files = {file.path: file.sha256 for file in base.files}
    found = contents.digests_of(directory, list(files))
    if files and all(name in found and found[name].sha256 == files[name] for name in files):
        return True
    return _digest(directory, architecture) == base.weights_digest


def _digest(directory: Path, architecture: str) -> str:
    try:
        return contents.tensors_of(directory, architecture, None).weights_digest
    except ConfigurationError as error:
        return str(error)
