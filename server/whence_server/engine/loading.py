"""Loading of a model: its files become a checked, digested and described model in memory.

`pretrained` loads the files; this module adds the adapter, the digests, the checks and the probe.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
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
from whence_server.engine.adapted_models import AdaptedModel, Base, load_adapted
from whence_server.engine.adapted_runner import AdaptedRunner
from whence_server.engine.adapter_places import find_adapters
from whence_server.engine.describing import describe, describe_adapter, read_text_files
from whence_server.engine.digest_cache import DigestCache, check_unchanged, read_identities
from whence_server.engine.frequencies import Frequencies
from whence_server.engine.generation_config import FILE, check_file
from whence_server.engine.handshake import EngineOptions
from whence_server.engine.internals import attention
from whence_server.engine.internals.head_weights import HeadWeights, read_head_weights
from whence_server.engine.internals.probe import Probe
from whence_server.engine.internals.probe_building import build_probe
from whence_server.engine.mixed_adapters import MixedAdapters, find_mixed
from whence_server.engine.mixed_runner import Way
from whence_server.engine.model_runner import ModelRunner
from whence_server.engine.pretrained import (
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
    adapted: tuple[AdaptedModel, ...] = ()
    """The model with each adapter that requests can name."""
    mixed: MixedAdapters | None = None
    """The adapters whose rows can share a pass; None if none can."""

    def make_runner(self) -> ModelRunner[Any]:
        """Return a new runner without rows, of the kind that the model needs."""
        if not self.adapted:
            return self._make_runner(self)
        models: dict[str, LoadedModel | AdaptedModel] = {"": self}
        models |= {each.info.name: each for each in self.adapted}
        runners: dict[str, ModelRunner[Any]] = {}
        if self.mixed is not None:
            runners = dict.fromkeys(self.mixed.ways, self.mixed.make_runner())
        if len(runners) == len(models):
            return runners[""]
        return AdaptedRunner({name: self._make_runner(of) for name, of in models.items()} | runners)

    def _make_runner(self, of: "LoadedModel | AdaptedModel") -> ModelRunner[Any]:
        if self.style is None:
            return SoloRunner(of.model, of.probe, of.rotary)
        return Runner(of.model, self.style, of.graph, of.probe)


def load(options: EngineOptions) -> LoadedModel:
    """Load, check, digest and describe the model.

    Raises:
        ConfigurationError: the model cannot be served.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    places = weights.find_places(options.model, trust_remote_code=options.trust_remote_code)
    named = find_adapters(options.adapters, places)
    config = read_config(places.base, options)
    check_file(places.base)
    base_weights = weights.list_weight_files(places.base)
    paths = weights.list_model_paths(places, base_weights, with_code=options.trust_remote_code)
    before = read_identities(paths.values())
    cache = DigestCache(options.digest_cache)
    with ThreadPoolExecutor(2, "digests") as pool:
        # The files are hashed while transformers reads them.
        digested = pool.submit(cache.compute, paths)
        text = read_text_files(load_tokenizer(places.tokenizer, options))
        model = load_model(places.base, config, base_weights, options)
        whole = _apply_adapter(model, places, options) if places.has_adapter else None
        in_memory = pool.submit(digests.digest_weights, model.state_dict())
        _set_num_threads(options.num_threads, model)
        # The digest must precede the first forward pass, which may rescale weights (RWKV).
        wait([in_memory])
        weights_digest = in_memory.result()
        files = cache.confirm(paths, digested.result(), weights_digest, _describe_conditions(model))
        check_unchanged(before, read_identities(paths.values()))
    if whole is not None:
        adapters.check_equals_peft(whole)
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
            whole, places, files, _list_files_alone(places, base_weights, options)
        ),
    )
    base = Base(model, style, obstacle, info, places, base_weights)
    adapted = tuple(load_adapted(base, place, options) for place in named)
    info = dataclasses.replace(info, adapters=tuple(each.info for each in adapted))
    mixed = None
    if style is not None and adapted:
        mixed = find_mixed(Way(model, graph, probe), style, adapted, options.max_batch_size)
    return LoadedModel(model, style, graph, info, probe, rotary, adapted, mixed)


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
