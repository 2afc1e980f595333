"""Holds files and tensors to a checkpoint's record, one by one."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.model import FileDigest
from whence_server.engine.digests import TensorDigest
from whence_server.training.recording.contents import (
    Tensors,
    decides_what_is_computed,
    prepares_text,
    read_tensor_digest,
)
from whence_server.training.verify.findings import Finding


def file_findings(checkpoint: Checkpoint, files: Mapping[str, FileDigest]) -> Iterable[Finding]:
    """Names every file that is not as the checkpoint has it, or would be read and is not in it."""
    for file in checkpoint.files:
        found = files.get(file.path)
        if found is None:
            yield Finding("file", file.path, "missing", file.sha256)
        elif found.sha256 != file.sha256:
            yield Finding("file", file.path, "changed", file.sha256, found.sha256)
    for name in additions(checkpoint, files).deciding:
        yield Finding("file", name, "not on record", "", files[name].sha256)


class Additions(NamedTuple):
    """Files that lie beside those on record, by what they do."""

    deciding: list[str]
    """They change what the model computes by being there."""
    preparing: list[str]
    """A tokenizer, say, where none was saved with the weights: the weights stay what they are."""
    others: list[str]
    """Nothing that computes reads them."""


def additions(checkpoint: Checkpoint, files: Mapping[str, FileDigest]) -> Additions:
    """What was put beside a checkpoint's files."""
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


def loading_findings(checkpoint: Checkpoint, tensors: Tensors) -> Iterable[Finding]:
    """What transformers would fill in with random numbers is missing, whatever it then holds."""
    expected = {tensor.name: read_tensor_digest(tensor) for tensor in checkpoint.tensors}
    for name in tensors.missing:
        there = expected.get(name)
        yield Finding("tensor", name, "missing", _shown(there) if there else "")
    for name in tensors.unexpected:
        yield Finding("tensor", name, "not on record; the architecture has none of this name")
    for name in tensors.mismatched:
        yield Finding("tensor", name, "of another shape")
    told = {*tensors.missing, *(name.partition(" ")[0] for name in tensors.mismatched)}
    for finding in tensor_findings(checkpoint, tensors.records):
        if finding.name not in told:
            yield finding


def tensor_findings(checkpoint: Checkpoint, tensors: Iterable[TensorDigest]) -> Iterable[Finding]:
    """Names every tensor that is not as the checkpoint has it."""
    expected = {tensor.name: read_tensor_digest(tensor) for tensor in checkpoint.tensors}
    found = {tensor.name: tensor for tensor in tensors}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) == found.get(name):
            continue
        if name not in found:
            yield Finding("tensor", name, "missing", _shown(expected[name]))
        elif name not in expected:
            yield Finding("tensor", name, "not on record", "", _shown(found[name]))
        else:
            yield Finding("tensor", name, "changed", _shown(expected[name]), _shown(found[name]))


def _shown(tensor: TensorDigest) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} {tensor.sha256}"
