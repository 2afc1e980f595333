"""Verification of a model's directory against its training record.

Every digest is computed anew. An unsigned record reveals accidental changes, not a forgery of files
and record together.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from whence.v1 import model_pb2 as pb
from whence.v1.training_pb2 import Checkpoint, TrainingDataset
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.domain.model import FileDigest
from whence_server.domain.paths import format_path
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.digests import digest_model_files
from whence_server.lineage.places import find_record_near
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import measure_torn_end, read_verified_run
from whence_server.training.recording import adapter_files, contents
from whence_server.training.recording.contents import DigestedTensors, read_tensor_digest
from whence_server.training.verify import bases, merging
from whence_server.training.verify.comparison import (
    compare_files,
    compare_loaded_tensors,
    find_additions,
)
from whence_server.training.verify.findings import Finding, Report, Verdict

_ORDER = ("record", "file", "tokenizer", "tensor", "weights", "base", "model")


def verify(directory: Path, record: Path | None = None, base: Path | None = None) -> Report:
    """Verify a final model, an adapter, a checkpoint, or any copy of one.

    Args:
        directory: directory of the model.
        record: record of its run; None searches in the directory and up to two levels above.
        base: base model of an adapter; None searches where record and adapter name it.

    Raises:
        ConfigurationError: the directory cannot be read, it neither holds a model nor is on record,
            or the given record does not exist.
    """
    report = Report(directory)
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is not a directory; give one that holds a model")
    if record is not None and not record.is_file():
        raise ConfigurationError(f"{record} is not there; give a run's lineage.binpb")
    files = contents.digest_existing_files(directory, contents.list_model_files(directory))
    files = {format_path(name): file for name, file in files.items()}
    report.model_digest = contents.compute_model_digest(directory, files)
    report.tokenizer_digest = contents.compute_tokenizer_digest(directory, files)
    report.record = record or find_record_near(directory)
    if report.record is None:
        return _report_without_record(report, files)
    try:
        run = read_verified_run(report.record)
        _describe_run(report, run)
    except LineageError as error:
        report.findings.append(Finding("record", report.record.name, str(error)))
        report.verdict = Verdict.NOT_VERIFIED
        return report
    files |= contents.digest_existing_files(directory, _list_nested_files(run))
    checkpoint = _find_by_files(run, directory, files)
    if checkpoint is None:
        _require_weights(directory)
    loaded = _load_tensors(report, run, checkpoint)
    checkpoint = checkpoint or _find_by_weights(run, loaded.tensors)
    if checkpoint is None and _describe_base_or_merged(report, run, loaded.tensors, base):
        return _conclude(report)
    checkpoint = checkpoint or _find_closest(run, loaded.tensors)
    if checkpoint is not None:
        _describe_checkpoint(report, run, checkpoint)
        _compare(report, run, checkpoint, files, loaded)
        if checkpoint.base_weights_digest:
            bases.verify_base(report, run, directory, base)
    else:
        if loaded.problem:
            report.findings.append(Finding("weights", str(directory), loaded.problem))
        problem = f"not on record: no checkpoint of run {report.training_run_id} has its weights"
        report.findings.append(Finding("model", str(directory), problem))
    return _conclude(report)


def _conclude(report: Report) -> Report:
    report.findings.sort(key=lambda finding: _ORDER.index(finding.subject))
    report.verdict = Verdict.NOT_VERIFIED if report.findings else Verdict.VERIFIED
    return report


def _describe_base_or_merged(
    report: Report, run: TrainingRun, tensors: DigestedTensors | None, base: Path | None
) -> bool:
    """Report a base or merged model of an adapter's run; return False if it is neither."""
    if tensors is None or not run.started.HasField("adapter_base"):
        return False
    if not contents.has_weights(report.directory):
        return False  # an adapter
    if tensors.weights_digest == run.started.adapter_base.weights_digest:
        report.num_tensors = len(tensors.records)
        report.base = "this is the model that the run trained an adapter on, as recorded"
        return True
    return merging.verify_merged(report, run, tensors, base)


def _require_weights(directory: Path) -> None:
    if not contents.has_weights(directory) and not adapter_files.list_adapter_files(directory):
        raise ConfigurationError(f"{directory} holds no weights; give a model or a checkpoint")


def _report_without_record(report: Report, files: dict[str, FileDigest]) -> Report:
    _require_weights(report.directory)
    report.reason = (
        "there is no record of its training: no lineage.binpb lies beside it or up to two levels "
        "above"
    )
    report.num_files = len(files)
    try:
        tensors = _digest_tensors(report.directory, None, "", None)
    except ConfigurationError as error:
        report.notes.append(str(error))
        return report
    report.weights_digest, report.num_tensors = tensors.weights_digest, len(tensors.records)
    return report


def _list_nested_files(run: TrainingRun) -> list[str]:
    """Return the recorded paths of files in folders below checkpoints."""
    return sorted({f.path for c in run.checkpoints for f in c.files if "/" in f.path})


def _find_by_files(
    run: TrainingRun, directory: Path, files: dict[str, FileDigest]
) -> Checkpoint | None:
    """Return the checkpoint that best matches these files, the newest among equal ones.

    A match of all deciding files ranks above a match of the path, and that above a match of some
    files. If no file is known to change the model, as with an unknown format of weights, every file
    decides. Among equal matches, one without further files on record ranks first.
    """
    best: tuple[tuple[bool, bool, int, bool], Checkpoint] | None = None
    saved: list[Checkpoint] = list(run.checkpoints)
    if adapter_files.is_adapter(directory) and not contents.has_weights(directory):
        saved += [part for whole in saved for part in adapter_files.split_nested_adapters(whole)]
    for checkpoint in saved:
        deciding = [f for f in checkpoint.files if contents.decides_what_is_computed(f.path)]
        deciding = deciding or list(checkpoint.files)
        same = _count_equal(deciding, files)
        whole = same == len(deciding)
        complete = _count_equal(checkpoint.files, files) == len(checkpoint.files)
        here = run.resolve_directory(checkpoint).resolve() == directory.resolve()
        rank = (whole and same > 0, here, same if whole or here else 0, complete and same > 0)
        if any(rank) and (best is None or rank >= best[0]):
            best = rank, checkpoint
    return best[1] if best else None


def _count_equal(recorded: Iterable[pb.FileDigest], files: dict[str, FileDigest]) -> int:
    return sum(it.path in files and files[it.path].sha256 == it.sha256 for it in recorded)


def _find_by_weights(run: TrainingRun, tensors: DigestedTensors | None) -> Checkpoint | None:
    """Return the newest checkpoint with this weights digest; None if there is none."""
    found = "" if tensors is None else tensors.weights_digest
    same = (it for it in reversed(run.checkpoints) if found and it.weights_digest == found)
    return next(same, None)


def _find_closest(run: TrainingRun, tensors: DigestedTensors | None) -> Checkpoint | None:
    """Return the newest checkpoint with most of these tensors; None if it has none."""
    if tensors is None:
        return None
    found = set(tensors.records)

    def count_shared(checkpoint: Checkpoint) -> int:
        return len(found & set(map(read_tensor_digest, checkpoint.tensors)))

    best = max(reversed(run.checkpoints), key=count_shared, default=None)
    return best if best is not None and count_shared(best) else None


class _Loaded(NamedTuple):
    """Digested tensors of a directory, or the reason why they cannot be loaded."""

    tensors: DigestedTensors | None
    problem: str


def _load_tensors(report: Report, run: TrainingRun, checkpoint: Checkpoint | None) -> _Loaded:
    """Load and digest the tensors with the class and dtype on record."""
    like = checkpoint or (run.checkpoints[-1] if run.checkpoints else Checkpoint())
    of_adapters = not checkpoint and run.started.HasField("adapter_base")
    dtype = None if of_adapters else contents.find_common_dtype(like)
    try:
        tensors = _digest_tensors(report.directory, checkpoint, run.started.architecture, dtype)
    except ConfigurationError as error:
        return _Loaded(None, str(error))
    report.weights_digest = tensors.weights_digest
    return _Loaded(tensors, "")


def _digest_tensors(
    directory: Path, checkpoint: Checkpoint | None, architecture: str, dtype: Any
) -> DigestedTensors:
    """Digest the tensors of an adapter's files, or of a model as transformers loads it."""
    below = adapter_files.list_nested_adapters(checkpoint) if checkpoint is not None else []
    is_adapter = bool(adapter_files.list_adapter_files(directory, below))
    if checkpoint is not None:
        is_adapter = is_adapter and bool(checkpoint.base_weights_digest)
    elif contents.has_weights(directory):
        is_adapter = False
    if is_adapter:
        return contents.digest_adapters(directory, below)
    return contents.digest_weights(directory, architecture, dtype)


def _describe_run(report: Report, run: TrainingRun) -> None:
    started, torn = run.started, measure_torn_end(run)
    report.num_entries, report.head = run.num_entries, run.head
    report.training_run_id, report.run_name = started.training_run_id, started.name
    report.num_planned_steps = started.num_planned_steps
    dataset = run.training_set.dataset or TrainingDataset()
    report.merkle_root, report.num_documents = dataset.merkle_root, dataset.num_documents
    if started.HasField("parent"):
        report.parent = f"{started.parent.source} ({started.parent.weights_digest})"
    elif started.recipe_json:
        # `whence-server train` records every parent.
        report.parent = "random weights"
    ending = f"ends in {torn.num_bytes} bytes that are no whole entry"
    if torn.is_being_written:
        report.notes.append(f"the record {ending} yet: a training is writing it")
    elif torn.num_bytes:
        report.findings.append(Finding("record", run.path.name, ending))


def _describe_checkpoint(report: Report, run: TrainingRun, checkpoint: Checkpoint) -> None:
    report.step, report.attempt = checkpoint.step, checkpoint.attempt
    report.path = checkpoint.path
    if run.is_superseded(checkpoint):
        report.notes.append(
            f"step {checkpoint.step} of attempt {checkpoint.attempt} was superseded: a later "
            "attempt went on from an earlier step"
        )
    if run.resolve_directory(checkpoint).resolve() != report.directory.resolve():
        report.notes.append(f"it was written to {checkpoint.path or '.'}, seen from the record")


def _compare(
    report: Report,
    run: TrainingRun,
    checkpoint: Checkpoint,
    files: dict[str, FileDigest],
    loaded: _Loaded,
) -> None:
    faults = report.findings
    of_files = list(compare_files(checkpoint, files))
    faults += of_files
    report.num_files = sum(
        file.path in files and files[file.path].sha256 == file.sha256 for file in checkpoint.files
    )
    _describe_additions(report, run, checkpoint, files)
    _compare_tokenizer(report, run, checkpoint)
    _compare_tensors(report, checkpoint, loaded, files_differ=bool(of_files))
    if checkpoint.model_digest and checkpoint.model_digest != report.model_digest:
        faults.append(
            Finding("model", "digest", "changed", checkpoint.model_digest, report.model_digest)
        )


def _describe_additions(
    report: Report, run: TrainingRun, checkpoint: Checkpoint, files: dict[str, FileDigest]
) -> None:
    added = find_additions(checkpoint, files)
    if added.preparing:
        known = (
            "to the byte the one that the run began with"
            if run.started.tokenizer_digest == report.tokenizer_digest != ""
            else "not on record, so that it cannot be checked"
        )
        report.notes.append(
            f"added to what was saved: {', '.join(added.preparing)}; this tokenizer is {known}"
        )
    if added.others and checkpoint.path != ".":
        # The record's directory has other files of the training.
        report.notes.append(
            f"added to what was saved, and no part of the model: {', '.join(added.others)}"
        )


def _compare_tensors(
    report: Report, checkpoint: Checkpoint, loaded: _Loaded, *, files_differ: bool
) -> None:
    """Compare tensors; differences are only notes if every file is as saved."""
    is_untouched = bool(checkpoint.files) and not files_differ
    tensors = loaded.tensors
    if tensors is None:
        if is_untouched:
            report.notes.append(f"every file is as it was saved; {loaded.problem}")
        else:
            report.findings.append(Finding("weights", str(report.directory), loaded.problem))
        return
    expected = set(map(read_tensor_digest, checkpoint.tensors))
    report.num_tensors = len(expected & set(tensors.records))
    faults = list(compare_loaded_tensors(checkpoint, tensors))
    if checkpoint.weights_digest not in ("", tensors.weights_digest):
        digests = checkpoint.weights_digest, tensors.weights_digest
        faults.append(Finding("weights", "digest", "changed", *digests))
    elif files_differ:
        report.notes.append(
            f"the tensors are to the bit those of step {checkpoint.step}: files around them, "
            "or their form, have changed"
        )
    if faults and is_untouched:
        report.notes.append(
            f"every file is as it was saved, and {len(faults)} things are not as the model had "
            f"them in memory then: {'; '.join(map(str, faults[:3]))}"
        )
    else:
        report.findings += faults


def _compare_tokenizer(report: Report, run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Compare the tokenizer with the one saved with the weights, or else with the run's."""
    of_run = run.started.tokenizer_digest
    saved = [file for file in checkpoint.files if weights.is_tokenizer_file(file.path)]
    expected = of_run
    if saved:
        expected = digest_model_files(
            [FileDigest(file.path, file.size_bytes, file.sha256) for file in saved]
        )
        if of_run and of_run != expected:
            report.notes.append(
                "the tokenizer that was saved with these weights is not to the byte the one that "
                f"the run began with ({of_run})"
            )
    elif not report.tokenizer_digest:
        return  # weights alone
    if expected and expected != report.tokenizer_digest:
        report.findings.append(
            Finding("tokenizer", "digest", "changed", expected, report.tokenizer_digest)
        )
