"""Loading of a model: its files become a checked, digested and described model in memory.

`pretrained` loads the files; this module adds the adapter, the digests, the checks and the probe.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import AdapterInfo, FileDigest, ModelInfo
from whence_server.engine import (
    adapters,
    batching_check,
    digests,
    frequencies,
    step_capture,
    weights,
)
from whence_server.engine.describing import describe, describe_adapter, read_text_files
from whence_server.engine.digest_cache import DigestCache, Identity, read_identity
from whence_server.engine.frequencies import Frequencies
from whence_server.engine.generation_config import FILE, check_file
from whence_server.engine.handshake import EngineOptions
from whence_server.engine.internals import attention
from whence_server.engine.internals.head_weights import HeadWeights, read_head_weights
from whence_server.engine.internals.probe import Probe
from whence_server.engine.internals.probe_building import build_probe
from whence_server.engine.model_runner import ModelRunner
from whence_server.engine.pretrained import (
    NAMES_SHOWN,
    copy_into_memory,
    load_model,
    load_tokenizer,
    read_config,
    translate_errors,
)
from whence_server.engine.runner import Runner
from whence_server.engine.solo import SoloRunner
from whence_server.engine.step_graph import StepGraph
from whence_server.engine.style import ForwardStyle
from whence_server.engine.weights import ModelPlaces

logger = logging.getLogger(__name__)

ONE_THREAD_BELOW_PARAMETERS = 40_000_000
"""Size below which models decode faster on one thread, with the front on another core."""


class LoadedModel(NamedTuple):
    """A model in memory, with its call style, graph, probe and description."""

    model: Any
    style: ForwardStyle | None
    """Call style for a batch; None if every sequence decodes by itself."""
    graph: StepGraph | None
    """The captured decoding step; None if it cannot be captured."""
    info: ModelInfo
    probe: Probe
    """Reads the model's activations while it decodes."""
    rotary: Frequencies
    """Rotary modules that depend on length, in their initial state."""

    def make_runner(self) -> ModelRunner[Any]:
        """Return a new runner without rows, of the kind that the model needs."""
        if self.style is None:
            return SoloRunner(self.model, self.probe, self.rotary)
        return Runner(self.model, self.style, self.graph, self.probe)


def load(options: EngineOptions) -> LoadedModel:
    """Load, check, digest and describe the model.

    Raises:
        ConfigurationError: the model cannot be served.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    places = weights.find_places(options.model, trust_remote_code=options.trust_remote_code)
    config = read_config(places.base, options)
    check_file(places.base)
    base_weights = weights.list_weight_files(places.base)
    paths = weights.list_model_paths(places, base_weights, with_code=options.trust_remote_code)
    before = _read_identities(paths)
    cache = DigestCache(options.digest_cache)
    with ThreadPoolExecutor(2, "digests") as pool:
        # The files are hashed while transformers reads them.
        digested = pool.submit(cache.compute, paths)
        text = read_text_files(load_tokenizer(places.tokenizer, options))
        model = load_model(places.base, config, base_weights, options)
        adapted = _apply_adapter(model, places, options) if places.has_adapter else None
        in_memory = pool.submit(digests.digest_weights, model.state_dict())
        _set_num_threads(options.num_threads, model)
        # The digest must precede the first forward pass, which may rescale weights (RWKV).
        wait([in_memory])
        weights_digest = in_memory.result()
        files = cache.confirm(paths, digested.result(), weights_digest, _describe_conditions(model))
        _check_unchanged(before, _read_identities(paths))
    if adapted is not None:
        adapters.check_equals_peft(adapted)
    rotary = frequencies.find(model)
    style, obstacle = _find_style(model, rotary)
    probe, internals = build_probe(
        model, style, obstacle, _read_head_weights(options, weights_digest)
    )
    graph = None if style is None else step_capture.capture_step(model, style, probe)
    info = describe(
        options.model_name,
        model,
        text,
        files=files,
        tokenizer_files=_list_recorded_names(
            places, places.tokenizer, weights.list_tokenizer_files
        ),
        loaded_files=[
            *(places.get_recorded_name(places.base, name) for name in base_weights),
            *(weights.list_adapter_files(places.directory)[1:] if places.has_adapter else ()),
        ],
        weights_digest=weights_digest,
        batched=style is not None,
        internals=internals,
        places=places,
        adapter=_describe_adapter(
            adapted, places, files, _list_files_alone(places, base_weights, options)
        ),
    )
    return LoadedModel(model, style, graph, info, probe, rotary)


def _describe_adapter(
    adapted: Any | None,
    places: ModelPlaces,
    files: Sequence[FileDigest],
    files_alone: Sequence[str],
) -> AdapterInfo | None:
    """Return the description of the adapter; None if there is none."""
    if adapted is None:
        return None
    kind = adapted.peft_config["default"].peft_type.value
    return describe_adapter(kind, places, files, files_alone)


def _list_recorded_names(
    places: ModelPlaces, directory: Path, names: Callable[[Path], list[str]]
) -> list[str]:
    """Return the recorded names of some of a directory's files."""
    return [places.get_recorded_name(directory, name) for name in names(directory)]


def _list_files_alone(
    places: ModelPlaces, base_weights: list[str], options: EngineOptions
) -> list[str]:
    """Return the files of the base if it is served alone; empty if it has no tokenizer."""
    try:
        return weights.list_model_files(
            places.base, base_weights, with_code=options.trust_remote_code
        )
    except ConfigurationError:
        return []


def _apply_adapter(model: Any, places: ModelPlaces, options: EngineOptions) -> Any:
    """Insert the adapter's layers into the base; return PEFT's model around it."""
    if (places.directory / FILE).is_file() and places.directory != places.base:
        logger.warning(
            "%s is not read: the base model's generation config applies, as in transformers and "
            "PEFT",
            places.directory / FILE,
        )
    with translate_errors(f"the adapter in {places.directory} cannot be added to {places.base}"):
        adapted = adapters.apply_adapter(model, places.directory, options.device)
        model.to(options.device)
        copy_into_memory(model)
    model.eval().requires_grad_(False)
    return adapted


def _read_identities(paths: Mapping[str, Path]) -> dict[Path, Identity]:
    return {path: read_identity(path) for path in paths.values()}


def _check_unchanged(before: dict[Path, Identity], after: dict[Path, Identity]) -> None:
    """Check that files did not change while they were loaded.

    Raises:
        ConfigurationError: files have changed, so that it is not known what was loaded.
    """
    changed = [str(path) for path, state in before.items() if after[path] != state]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed[:NAMES_SHOWN])} changed while the model was being loaded; start "
            "again when nothing writes to these files"
        )


def _describe_conditions(model: Any) -> str:
    """Return the versions and settings that the tensors in memory depend on besides the files."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}, {model.dtype}"


def _find_style(model: Any, rotary: Frequencies) -> tuple[ForwardStyle | None, str | None]:
    """Find the model's call style, with our attention function in place if it can be.

    Returns:
        The call style, None if every sequence decodes by itself; and the reason why our attention
        is not in place, None if it is.

    Raises:
        ConfigurationError: the model cannot decode.
    """
    obstacle = attention.adopt(model)
    if obstacle is not None:
        return batching_check.check_batching(model, rotary), obstacle
    decodes = True
    try:
        style = batching_check.check_batching(model, rotary)
    except ConfigurationError:
        style, decodes = None, False
    if style is not None:
        return style, None
    attention.restore(model)
    style = batching_check.check_batching(model, rotary)
    if style is None and decodes:
        # Every sequence decodes by itself, with either attention function.
        attention.install(model)
        return None, None
    return style, "with our attention function it gives other logits"


def _read_head_weights(options: EngineOptions, weights_digest: str) -> HeadWeights | None:
    if not options.head_weights:
        return None
    return read_head_weights(options.head_weights, weights_digest)


def _set_num_threads(num_threads: int, model: Any) -> None:
    """Set the number of threads; 0 is 1 for a small model, else torch's default of all cores."""
    if num_threads == 0 and model.num_parameters() < ONE_THREAD_BELOW_PARAMETERS:
        num_threads = 1
    if num_threads:
        torch.set_num_threads(num_threads)
