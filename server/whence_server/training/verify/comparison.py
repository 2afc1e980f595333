"""Comparison of files and tensors with a recorded checkpoint."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.model import FileDigest
from whence_server.engines.transformers.digests import TensorDigest
from whence_server.training.recording.contents import (
    DigestedTensors,
    decides_what_is_computed,
    prepares_text,
    read_tensor_digest,
)
from whence_server.training.verify.findings import Finding


def compare_files(checkpoint: Checkpoint, files: Mapping[str, FileDigest]) -> Iterable[Finding]:
    """Yield a finding for each changed or missing file, and each added one that has an effect."""
    for file in checkpoint.files:
        found = files.get(file.path)
        if found is None:
            yield Finding("file", file.path, "missing", file.sha256)
        elif found.sha256 != file.sha256:
            yield Finding("file", file.path, "changed", file.sha256, found.sha256)
    for name in find_additions(checkpoint, files).deciding:
        yield Finding("file", name, "not on record", "", files[name].sha256)


class Additions(NamedTuple):
    """Files in a checkpoint's directory that are not on record, by their effect."""

    deciding: list[str]
    """Files whose presence changes the model's output."""
    preparing: list[str]
    """Files of a tokenizer or another input processor, if none was saved with the weights."""
    others: list[str]
    """Files without effect on the model."""


def find_additions(checkpoint: Checkpoint, files: Mapping[str, FileDigest]) -> Additions:
    """Return the files that were added to a checkpoint's directory."""
    known = {file.path for file in checkpoint.files}
    has_its_own = any(prepares_text(name) for name in known)
    added = Additions([], [], [])
    for name in sorted(files.keys() - known):
        if prepares_text(name) and not has_its_own:
            added.preparing.append(name)
        elif decides_what_is_computed(name):
            added.deciding.append(name)
        else:
            added.others.append(name)
    return added


def compare_loaded_tensors(checkpoint: Checkpoint, tensors: DigestedTensors) -> Iterable[Finding]:
    """Yield a finding for each loaded tensor that differs; randomly filled ones are missing."""
    expected = {tensor.name: read_tensor_digest(tensor) for tensor in checkpoint.tensors}
    for name in tensors.missing:
        there = expected.get(name)
        yield Finding("tensor", name, "missing", _format_tensor(there) if there else "")
    for name in tensors.unexpected:
        yield Finding("tensor", name, "not on record; the architecture has none of this name")
    for name in tensors.mismatched:
        yield Finding("tensor", name, "of another shape")
    told = {*tensors.missing, *(name.partition(" ")[0] for name in tensors.mismatched)}
    for finding in compare_tensors(checkpoint, tensors.records):
        if finding.name not in told:
            yield finding


def compare_tensors(checkpoint: Checkpoint, tensors: Iterable[TensorDigest]) -> Iterable[Finding]:
    """Yield a finding for each tensor that differs from the checkpoint on record."""
    expected = {tensor.name: read_tensor_digest(tensor) for tensor in checkpoint.tensors}
    found = {tensor.name: tensor for tensor in tensors}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) == found.get(name):
            continue
        if name not in found:
            yield Finding("tensor", name, "missing", _format_tensor(expected[name]))
        elif name not in expected:
            yield Finding("tensor", name, "not on record", "", _format_tensor(found[name]))
        else:
            yield Finding(
                "tensor",
                name,
                "changed",
                _format_tensor(expected[name]),
                _format_tensor(found[name]),
            )


def _format_tensor(tensor: TensorDigest) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} {tensor.sha256}"
