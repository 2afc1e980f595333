"""Models that an adapter was merged into: computed again with PEFT, and compared."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.engine.digests import digest_state, digest_weights
from whence_server.lineage.run import TrainingRun
from whence_server.training.recording import adapter_files, contents
from whence_server.training.recording.contents import Tensors
from whence_server.training.verify import bases
from whence_server.training.verify.findings import Finding, Report

_COMPUTE_NOTHING = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Fields that a merge, or saving its outcome, may leave otherwise."""
_ROUNDING = 2.0
"""The largest difference that counts as rounding, in units of it."""


def verify_merged(report: Report, run: TrainingRun, tensors: Tensors, given: Path | None) -> bool:
    """Say which adapter on record, merged into the model below it, gives a model's tensors.

    Args:
        report: of a model that no checkpoint has; gets what is found out.
        run: trained an adapter.
        tensors: the model's.
        given: where the model below the adapter lies, where that was said.

    Returns:
        False where none does, or it cannot be computed; notes say why.
    """
    place = bases.find_base(run, report.directory, given)
    architecture = run.started.architecture
    if place is None or not bases.is_recorded(run.started.adapter_base, place, architecture):
        report.notes.append(
            "no adapter was merged to compare: the model below it is not found as recorded; "
            "give it with --base"
        )
        return False
    closest: _Merged | None = None
    for merged in _all_merged(report, run, place):
        margin = _margin(merged.state, _state(report.directory, architecture))
        if closest is None or margin < closest.margin:
            closest = merged._replace(margin=margin)
        if merged.weights_digest == tensors.weights_digest:
            break
    if closest is None:
        return False
    _tell(report, closest, tensors, place)
    _hold_configuration(report, run, place)
    return True


def _hold_configuration(report: Report, run: TrainingRun, base: Path) -> None:
    """Hold a merged model's configuration to its base's, or to the one that was trained with."""
    of_base = _configuration((base / "config.json").read_bytes())
    of_run = _configuration(run.started.config_json or "{}")
    found = _configuration((report.directory / "config.json").read_bytes())
    changed = sorted(
        name
        for name in (found.keys() | of_base.keys()) - _COMPUTE_NOTHING
        if found.get(name) not in (of_base.get(name), of_run.get(name, of_base.get(name)))
    )
    if changed:
        problem = f"not as the model below the adapter has it: {', '.join(changed)}"
        report.findings.append(Finding("file", "config.json", problem))


def _configuration(text: str | bytes) -> dict[str, Any]:
    """A configuration with all that its class fills in."""
    fields: dict[str, Any] = json.loads(text)
    if "model_type" in fields:
        kind = str(fields.pop("model_type"))
        fields = transformers.AutoConfig.for_model(kind, **fields).to_dict()
    return fields


class _Merged(NamedTuple):
    """A checkpoint's adapter, merged into the model below it."""

    checkpoint: Checkpoint
    state: Mapping[str, torch.Tensor]
    weights_digest: str
    margin: float = float("inf")
    """The largest difference of the model's elements, in units of rounding."""


def _all_merged(report: Report, run: TrainingRun, base: Path) -> Iterator[_Merged]:
    """Of every adapter on record that is on disk as it was recorded, the newest first."""
    seen: set[str] = set()
    for checkpoint in reversed(run.checkpoints):
        directory = run.directory_of(checkpoint)
        if not checkpoint.base_weights_digest or checkpoint.weights_digest in seen:
            continue
        try:
            below = adapter_files.below_of(checkpoint)
            state = adapter_files.tensors_in(directory, below)
            if digest_weights(state) != checkpoint.weights_digest:
                continue
            seen.add(checkpoint.weights_digest)
            merged = merge(base, directory, run.started.architecture).state_dict()
        except ConfigurationError as error:
            report.notes.append(str(error))
            continue
        yield _Merged(checkpoint, merged, digest_weights(merged))


def merge(base: Path, adapter: Path, architecture: str) -> Any:
    """The model below an adapter with the adapter merged into it.

    Raises:
        ConfigurationError: that cannot be computed; one line says why.
    """
    model, _ = contents.load(base, architecture, None)
    try:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConfigurationError(
            f"the adapter in {adapter} cannot be merged: {type(error).__name__}: {reason}"
        ) from error


def _state(directory: Path, architecture: str) -> Mapping[str, torch.Tensor]:
    model, _ = contents.load(directory, architecture, None)
    state: Mapping[str, torch.Tensor] = model.state_dict()
    return state


def _margin(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of two states' elements, in units of rounding."""
    if one.keys() != other.keys():
        return math.inf
    return max((_difference(one[name], other[name]) for name in one), default=0.0)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors' elements; infinite where they cannot be compared.

    A unit is the element's own last place, and four of float32's at the tensor's largest element:
    an adapter's product is computed in float32, in an order that differs between machines.
    """
    if one.shape == other.shape and torch.equal(one, other):
        return 0.0
    if one.shape != other.shape or not (one.is_floating_point() and other.is_floating_point()):
        return math.inf
    a, b = one.double(), other.double()
    size = torch.maximum(a.abs(), b.abs())
    own = max(torch.finfo(one.dtype).eps, torch.finfo(other.dtype).eps) * size
    units = own + 4 * torch.finfo(torch.float32).eps * size.max()
    largest = float(((a - b).abs() / units).max())
    return largest if math.isfinite(largest) else math.inf


def _tell(report: Report, merged: _Merged, tensors: Tensors, base: Path) -> None:
    step = merged.checkpoint.step
    report.step, report.attempt = step, merged.checkpoint.attempt
    what = f"the adapter of step {step} merged into {base}"
    records = set(digest_state(merged.state).tensors)
    report.num_tensors = len(records & set(tensors.records))
    if merged.weights_digest == tensors.weights_digest:
        report.base = f"{what}, computed again: the same to the bit"
        return
    report.base = f"{what}, computed again: {report.num_tensors} tensors are the same to the bit"
    told = f"the largest difference is {merged.margin:.3g} times what rounding makes"
    if merged.margin <= _ROUNDING:
        report.notes.append(f"not to the bit: {told}, as of a merge on another machine")
        return
    problem = f"not on record, and not what {what} gives: {told}"
    report.findings.append(Finding("model", str(report.directory), problem))
