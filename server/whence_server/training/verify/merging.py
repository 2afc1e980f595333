"""Verification of merged models: each recorded adapter is merged again with PEFT and compared."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.digests import digest_state, digest_weights
from whence_server.lineage.run import TrainingRun
from whence_server.training.recording import adapter_files, contents
from whence_server.training.recording.contents import DigestedTensors
from whence_server.training.verify import bases
from whence_server.training.verify.findings import Finding, Report

_IGNORED_FIELDS = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Configuration fields that merging and saving may change, without effect on the output."""
_ROUNDING = 2.0
"""Largest difference that counts as rounding, in units of rounding."""


def verify_merged(
    report: Report, run: TrainingRun, tensors: DigestedTensors, given: Path | None
) -> bool:
    """Find the recorded adapter whose merge into its base model gives a model's tensors.

    Args:
        report: report to extend, of a model that matches no checkpoint.
        run: run that trained an adapter.
        tensors: digests of the model's tensors.
        given: directory of the base model; None searches where record and adapter name it.

    Returns:
        False if no adapter could be merged; the report's notes say why.
    """
    place = bases.find_base(run, report.directory, given)
    architecture = run.started.architecture
    if place is None or not bases.is_recorded(run.started.adapter_base, place, architecture):
        report.notes.append(
            "no adapter was merged to compare: its base model is not found as recorded; "
            "give it with --base"
        )
        return False
    closest: _MergedModel | None = None
    for merged in _merge_recorded_adapters(report, run, place):
        margin = _measure_states_difference(
            merged.state, _load_state(report.directory, architecture)
        )
        if closest is None or margin < closest.margin:
            closest = merged._replace(margin=margin)
        if merged.weights_digest == tensors.weights_digest:
            break
    if closest is None:
        return False
    _report_comparison(report, closest, tensors, place)
    _compare_configuration(report, run, place)
    return True


def _compare_configuration(report: Report, run: TrainingRun, base: Path) -> None:
    """Compare a merged model's configuration with the base model's and the training's."""
    of_base = _parse_configuration((base / "config.json").read_bytes())
    of_run = _parse_configuration(run.started.config_json or "{}")
    found = _parse_configuration((report.directory / "config.json").read_bytes())
    changed = sorted(
        name
        for name in (found.keys() | of_base.keys()) - _IGNORED_FIELDS
        if found.get(name) not in (of_base.get(name), of_run.get(name, of_base.get(name)))
    )
    if changed:
        problem = f"different from the base model's: {', '.join(changed)}"
        report.findings.append(Finding("file", "config.json", problem))


def _parse_configuration(text: str | bytes) -> dict[str, Any]:
    """Parse a configuration, and add the defaults of its class."""
    fields: dict[str, Any] = json.loads(text)
    if "model_type" in fields:
        kind = str(fields.pop("model_type"))
        fields = transformers.AutoConfig.for_model(kind, **fields).to_dict()
    return fields


class _MergedModel(NamedTuple):
    """Adapter of a checkpoint, merged into its base model."""

    checkpoint: Checkpoint
    state: Mapping[str, torch.Tensor]
    weights_digest: str
    margin: float = float("inf")
    """Largest difference from the model's elements, in units of rounding."""


def _merge_recorded_adapters(
    report: Report, run: TrainingRun, base: Path
) -> Iterator[_MergedModel]:
    """Merge every adapter that is on disk as recorded, the newest first."""
    seen: set[str] = set()
    for checkpoint in reversed(run.checkpoints):
        directory = run.resolve_directory(checkpoint)
        if not checkpoint.base_weights_digest or checkpoint.weights_digest in seen:
            continue
        try:
            below = adapter_files.list_nested_adapters(checkpoint)
            state = adapter_files.read_tensors(directory, below)
            if digest_weights(state) != checkpoint.weights_digest:
                continue
            seen.add(checkpoint.weights_digest)
            merged = merge(base, directory, run.started.architecture).state_dict()
        except ConfigurationError as error:
            report.notes.append(str(error))
            continue
        yield _MergedModel(checkpoint, merged, digest_weights(merged))


def merge(base: Path, adapter: Path, architecture: str) -> Any:
    """Return the base model with an adapter merged into it.

    Raises:
        ConfigurationError: the adapter cannot be merged; one line says why.
    """
    model, _ = contents.load_model(base, architecture, None)
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


def _load_state(directory: Path, architecture: str) -> Mapping[str, torch.Tensor]:
    model, _ = contents.load_model(directory, architecture, None)
    state: Mapping[str, torch.Tensor] = model.state_dict()
    return state


def _measure_states_difference(
    one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]
) -> float:
    """Return the largest difference of two states' elements, in units of rounding."""
    if one.keys() != other.keys():
        return math.inf
    return max((_measure_difference(one[name], other[name]) for name in one), default=0.0)


def _measure_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of two tensors' elements; infinite if not comparable.

    A unit is the element's last place plus four of float32's last places at the tensor's largest
    element: an adapter's product is computed in float32, in an order that varies by machine.
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


def _report_comparison(
    report: Report, merged: _MergedModel, tensors: DigestedTensors, base: Path
) -> None:
    step = merged.checkpoint.step
    report.step, report.attempt = step, merged.checkpoint.attempt
    what = f"the adapter of step {step} merged into {base}"
    records = set(digest_state(merged.state).tensors)
    report.num_tensors = len(records & set(tensors.records))
    if merged.weights_digest == tensors.weights_digest:
        report.base = f"{what}, computed again: the same to the bit"
        return
    report.base = f"{what}, computed again: {report.num_tensors} tensors are the same to the bit"
    told = f"the largest difference is {merged.margin:.3g} units of rounding"
    if merged.margin <= _ROUNDING:
        report.notes.append(f"not bitwise equal: {told}, as after a merge on another machine")
        return
    problem = f"not on record, and different from {what}: {told}"
    report.findings.append(Finding("model", str(report.directory), problem))
