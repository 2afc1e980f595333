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
from whence_server.engines.transformers import adapters, digests, frequencies, trials, weights
from whence_server.engines.transformers.adapted_models import AdaptedModel, Base, load_adapted
from whence_server.engines.transformers.adapted_runner import AdaptedRunner
from whence_server.engines.transformers.adapter_places import find_adapters
from whence_server.engines.transformers.conditions import digest_conditions
from whence_server.engines.transformers.describing import (
    describe,
    describe_adapter,
    read_text_files,
)
from whence_server.engines.transformers.digest_cache import (
    DigestCache,
    check_unchanged,
    read_identities,
)
from whence_server.engines.transformers.digests import digest_model_files
from whence_server.engines.transformers.findings_cache import FindingsCache
from whence_server.engines.transformers.frequencies import Frequencies
from whence_server.engines.transformers.generation_config import FILE, check_file
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.head_input import lay_out_head_input
from whence_server.engines.transformers.internals.head_weights import HeadWeights, read_head_weights
from whence_server.engines.transformers.internals.probe import Probe
from whence_server.engines.transformers.mixed_adapters import MixedAdapters, find_mixed
from whence_server.engines.transformers.mixed_runner import Way
from whence_server.engines.transformers.model_runner import ModelRunner
from whence_server.engines.transformers.packed_linears import name_kernels
from whence_server.engines.transformers.prefix_cache import PrefixCache, round_to_blocks
from whence_server.engines.transformers.pretrained import (
    copy_into_memory,
    load_model,
    load_tokenizer,
    read_config,
    translate_errors,
)
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.solo import SoloRunner
from whence_server.engines.transformers.step_graph import StepGraph
from whence_server.engines.transformers.style import ForwardStyle
from whence_server.engines.transformers.trials import Tried
from whence_server.engines.transformers.weights import ModelPlaces

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
    pass_dependence: str
    """Reason why results depend on the division into passes; "" if they do not."""
    adapted: tuple[AdaptedModel, ...] = ()
    """The model with each adapter that requests can name."""
    mixed: MixedAdapters | None = None
    """The adapters whose rows can share a pass; None if none can."""
    deferred: Sequence[Callable[[], object]] = ()
    """Work for generations with internals, which is done when first needed; the engine does it
    earlier if it is idle."""

    def make_runner(self) -> ModelRunner[Any]:
        """Return a new runner without rows, of the kind that the model needs."""
        num_tokens = self.info.prefix_cache_tokens
        prefixes = PrefixCache(num_tokens) if num_tokens else None
        if not self.adapted:
            return self._make_runner(self, prefixes)
        models: dict[str, LoadedModel | AdaptedModel] = {"": self}
        models |= {each.info.name: each for each in self.adapted}
        runners: dict[str, ModelRunner[Any]] = {}
        if self.mixed is not None:
            runners = dict.fromkeys(self.mixed.ways, self.mixed.make_runner(prefixes))
        if len(runners) == len(models):
            return runners[""]
        alone = {name: self._make_runner(of, prefixes) for name, of in models.items()}
        return AdaptedRunner(alone | runners)

    def _make_runner(
        self, of: "LoadedModel | AdaptedModel", prefixes: PrefixCache | None
    ) -> ModelRunner[Any]:
        if self.style is None:
            return SoloRunner(of.model, of.probe, of.rotary, self.pass_dependence)
        return Runner(of.model, self.style, of.graph, of.probe, prefixes=prefixes)


def load(options: EngineOptions) -> LoadedModel:
    """Load, check, digest and describe the model.

    Raises:
        ConfigurationError: the model cannot be served.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    places = weights.find_places(options.model, trust_remote_code=options.trust_remote_code)
    named = find_adapters(options.adapters, places)
    config = read_config(places.base, options, places.gguf)
    if not places.gguf:
        check_file(places.base)
    base_weights = places.list_base_weights()
    paths = weights.list_model_paths(places, base_weights, with_code=options.trust_remote_code)
    before = read_identities(paths.values())
    cache = DigestCache(options.digest_cache)
    with ThreadPoolExecutor(3, "loading") as pool:
        # The files are hashed and the tokenizer is loaded while transformers reads the weights.
        digested = pool.submit(cache.compute, paths)
        reading = pool.submit(
            lambda: read_text_files(load_tokenizer(places.tokenizer, options, places.gguf))
        )
        model = load_model(places.base, config, base_weights, options, places.gguf)
        lay_out_head_input(model)
        whole = _apply_adapter(model, places, options) if places.has_adapter else None
        in_memory = pool.submit(digests.digest_weights, model.state_dict())
        _set_num_threads(options.num_threads, model)
        text = reading.result()
        # The digest must precede the first forward pass, which may rescale weights (RWKV).
        wait([in_memory])
        weights_digest = in_memory.result()
        files = cache.confirm(paths, digested.result(), weights_digest, _describe_conditions(model))
        check_unchanged(before, read_identities(paths.values()))
    if whole is not None:
        adapters.check_equals_peft(whole)
    rotary = frequencies.find(model)
    tried = _try_out(model, rotary, options, digest_model_files(files), weights_digest)
    info = describe(
        options.model_name,
        model,
        text,
        files=files,
        tokenizer_files=[places.gguf]
        if places.gguf
        else _list_recorded_names(places, places.tokenizer, weights.list_tokenizer_files),
        loaded_files=[
            *(places.get_recorded_name(places.base, name) for name in base_weights),
            *(weights.list_adapter_files(places.directory)[1:] if places.has_adapter else ()),
        ],
        weights_digest=weights_digest,
        batched=tried.style is not None,
        step_kernels=name_kernels(model, packed=tried.graph is not None and tried.graph.packed),
        internals=dataclasses.replace(
            tried.internals, step_kernels=_name_probed_kernels(model, tried.graph)
        ),
        places=places,
        adapter=_describe_adapter(
            whole, places, files, _list_files_alone(places, base_weights, options)
        ),
        prefix_cache_tokens=round_to_blocks(options.prefix_cache_tokens)
        if tried.reuses_prefixes
        else 0,
    )
    base = Base(
        model, tried.style, tried.obstacle, tried.pass_dependence, info, places, base_weights
    )
    adapted = tuple(load_adapted(base, place, options) for place in named)
    info = dataclasses.replace(info, adapters=tuple(each.info for each in adapted))
    mixed = None
    if tried.style is not None and adapted:
        way = Way(model, tried.graph, tried.probe)
        mixed = find_mixed(way, tried.style, adapted, options.max_batch_size)
    return LoadedModel(
        model,
        tried.style,
        tried.graph,
        info,
        tried.probe,
        rotary,
        tried.pass_dependence,
        adapted,
        mixed,
        tuple(tried.deferred),
    )


def _try_out(
    model: Any,
    rotary: Frequencies,
    options: EngineOptions,
    model_digest: str,
    weights_digest: str,
) -> Tried:
    """Run the trials of the model, or put the findings of an earlier start into effect.

    Raises:
        ConfigurationError: the model cannot be served.
    """
    head_weights = _read_head_weights(options, weights_digest)
    cache = FindingsCache(options.findings_cache)
    conditions = digest_conditions(
        model,
        model_digest,
        weights_digest,
        [
            head_weights.digest if head_weights else "",
            options.step_kernels,
            options.kernel_variables,
        ],
    )
    known = cache.recall(conditions)
    if known is not None:
        tried = trials.repeat(model, known, head_weights)
        if tried is not None:
            return tried
        cache.forget(conditions)
        logger.error(
            "the captured step differs from the modules, unlike at an earlier start under the "
            "same conditions: the model is tried again"
        )
    tried, findings = trials.try_out(model, rotary, head_weights, options.step_kernels)
    cache.keep(conditions, findings)
    return tried


def _name_probed_kernels(model: Any, graph: StepGraph | None) -> str:
    """Return the kernels of steps with probed rows: without a graph for them, the modules'."""
    return name_kernels(model, packed=graph is not None and graph.packed and graph.has_probe)


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
