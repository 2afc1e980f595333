"""From a model's directory to a model that is ready to run, and that is known to the bit.

`pretrained` loads what the files hold; here it is digested, adapted, tried out and described.
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
    load_model,
    load_tokenizer,
    read_config,
    take_into_memory,
    translate_errors,
)
from whence_server.engine.runner import Runner
from whence_server.engine.solo import SoloRunner
from whence_server.engine.step_graph import StepGraph
from whence_server.engine.style import ForwardStyle
from whence_server.engine.weights import ModelPlaces

logger = logging.getLogger(__name__)

ONE_THREAD_BELOW_PARAMETERS = 40_000_000
"""Smaller models decode faster on one thread while the front computes on another core."""


class LoadedModel(NamedTuple):
    """A model in memory, and all that is known of it."""

    model: Any
    style: ForwardStyle | None
    """How to call it for a batch; None where every sequence decodes by itself."""
    graph: StepGraph | None
    """Its decoding step, captured; None where that cannot be."""
    info: ModelInfo
    probe: Probe
    """Looks at its activations while it decodes."""
    rotary: Frequencies
    """Its rotary modules that depend on length, as they were when it was loaded."""

    def make_runner(self) -> ModelRunner[Any]:
        """Return a new runner of the kind that is right for the model, without rows."""
        if self.style is None:
            return SoloRunner(self.model, self.probe, self.rotary)
        return Runner(self.model, self.style, self.graph, self.probe)


def load(options: EngineOptions) -> LoadedModel:
    """Load the model, checks it, and says exactly which one it is.

    Raises:
        ConfigurationError: it cannot be served.
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
        # The files are digested while transformers reads them.
        digested = pool.submit(cache.compute, paths)
        text = read_text_files(load_tokenizer(places.tokenizer, options))
        model = load_model(places.base, config, base_weights, options)
        adapted = _apply_adapter(model, places, options) if places.has_adapter else None
        in_memory = pool.submit(digests.digest_weights, model.state_dict())
        _set_num_threads(options.num_threads, model)
        # Not before the digest is taken: a first forward pass may rescale weights (RWKV's does).
        wait([in_memory])
        weights_digest = in_memory.result()
        files = cache.confirm(paths, digested.result(), weights_digest, _describe_conditions(model))
        _check_unchanged(before, _read_identities(paths))
    if adapted is not None:
        adapters.check_alone(adapted)
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
    """Return the description of the adapter; None where there is none."""
    if adapted is None:
        return None
    kind = adapted.peft_config["default"].peft_type.value
    return describe_adapter(kind, places, files, files_alone)


def _list_recorded_names(
    places: ModelPlaces, directory: Path, names: Callable[[Path], list[str]]
) -> list[str]:
    """Return the names on record of some of a directory's files."""
    return [places.get_recorded_name(directory, name) for name in names(directory)]


def _list_files_alone(
    places: ModelPlaces, base_weights: list[str], options: EngineOptions
) -> list[str]:
    """Return the files of a base that is served alone; none where it has no tokenizer."""
    try:
        return weights.list_model_files(
            places.base, base_weights, with_code=options.trust_remote_code
        )
    except ConfigurationError:
        return []


def _apply_adapter(model: Any, places: ModelPlaces, options: EngineOptions) -> Any:
    """Return PEFT's model around the base, into which it puts the adapter's layers."""
    if (places.directory / FILE).is_file() and places.directory != places.base:
        logger.warning(
            "%s is not read: an adapter goes by its base's, as in transformers and PEFT",
            places.directory / FILE,
        )
    with translate_errors(f"the adapter in {places.directory} cannot be put on {places.base}"):
        adapted = adapters.apply_adapter(model, places.directory, options.device)
        model.to(options.device)
        take_into_memory(model)
    model.eval().requires_grad_(False)
    return adapted


def _read_identities(paths: Mapping[str, Path]) -> dict[Path, Identity]:
    return {path: read_identity(path) for path in paths.values()}


def _check_unchanged(before: dict[Path, Identity], after: dict[Path, Identity]) -> None:
    """Refuse files that were written to while they were read: nobody knows what was loaded.

    Raises:
        ConfigurationError: naming them.
    """
    changed = [str(path) for path, state in before.items() if after[path] != state]
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed[:NAMES_SHOWN])} changed while the model was being loaded; start "
            "again once nothing writes to it"
        )


def _describe_conditions(model: Any) -> str:
    """Return all that the tensors in memory depend on besides the files."""
    return f"transformers {transformers.__version__}, torch {torch.__version__}, {model.dtype}"


def _find_style(model: Any, rotary: Frequencies) -> tuple[ForwardStyle | None, str | None]:
    """How the model is called, with our attention in place where it can be, or why it cannot.

    Raises:
        ConfigurationError: it decodes in no way.
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
        # One sequence after the other, with either.
        attention.install(model)
        return None, None
    return style, "with our attention it gives other logits"


def _read_head_weights(options: EngineOptions, weights_digest: str) -> HeadWeights | None:
    if not options.head_weights:
        return None
    return read_head_weights(options.head_weights, weights_digest)


def _set_num_threads(num_threads: int, model: Any) -> None:
    """0 chooses: one thread for a small model, else torch's default, which is every core."""
    if num_threads == 0 and model.num_parameters() < ONE_THREAD_BELOW_PARAMETERS:
        num_threads = 1
    if num_threads:
        torch.set_num_threads(num_threads)
