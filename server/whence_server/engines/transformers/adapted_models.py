"""The served model with each of the adapters that requests can name.

Each adapter has a copy of the model's modules with its layers in it; the copies share the base's
tensors. So an adapter is loaded exactly as if it were served alone, and a pass without an adapter
runs the base's modules unchanged. `mixed_adapters` lets rows of several adapters share a pass.
"""

import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import AdapterInfo, FileDigest, ModelInfo, NamedAdapter
from whence_server.engines.transformers import (
    adapters,
    batching_check,
    digests,
    frequencies,
    shared_copy,
    step_capture,
    weights,
)
from whence_server.engines.transformers.adapter_base import check_base, check_tokenizer
from whence_server.engines.transformers.adapter_places import AdapterPlace, name_in_errors
from whence_server.engines.transformers.digest_cache import check_unchanged, read_identities
from whence_server.engines.transformers.frequencies import Frequencies
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.internals.probe import Probe
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.packed_linears import name_kernels
from whence_server.engines.transformers.pretrained import copy_into_memory, translate_errors
from whence_server.engines.transformers.step_graph import StepGraph
from whence_server.engines.transformers.style import ForwardStyle
from whence_server.engines.transformers.weights import ModelPlaces

logger = logging.getLogger(__name__)


class Base(NamedTuple):
    """The served model, to which adapters are added.

    Attributes:
        model: as it is served.
        style: its call style for a batch; None if every sequence decodes by itself.
        obstacle: reason why it gives no sources, if known.
        pass_dependence: reason why results depend on the division into passes; "" if they do not.
        info: its description.
        places: its directories.
        weight_files: names of its weight files.
    """

    model: Any
    style: ForwardStyle | None
    obstacle: str | None
    pass_dependence: str
    info: ModelInfo
    places: ModelPlaces
    weight_files: Sequence[str]


class AdaptedModel(NamedTuple):
    """A copy of the served model with an adapter.

    Attributes:
        model: the base's class, with the adapter's layers.
        graph: its captured decoding step; None if it cannot be captured.
        probe: reads its activations.
        rotary: its rotary modules that depend on length.
        info: the adapter's description.
    """

    model: Any
    graph: StepGraph | None
    probe: Probe
    rotary: Frequencies
    info: NamedAdapter


def load_adapted(base: Base, place: AdapterPlace, options: EngineOptions) -> AdaptedModel:
    """Add an adapter to a copy of the served model.

    Raises:
        ConfigurationError: the adapter cannot be served, or does not belong to the model.
    """
    began_s = time.monotonic()
    with name_in_errors(place):
        adapted = _load(base, place, options)
    logger.info(
        "the adapter %s is ready in %.1f s: %s, digest %s",
        place.name,
        time.monotonic() - began_s,
        adapted.info.identity.peft_type,
        adapted.info.identity.digest,
    )
    return adapted


def _load(base: Base, place: AdapterPlace, options: EngineOptions) -> AdaptedModel:
    names = weights.list_adapter_files(place.directory)
    before = read_identities([place.directory / name for name in names])
    recorded = {file.path: file.sha256 for file in base.info.files}
    check_base(place, base.places, {name: recorded[name] for name in base.weight_files})
    check_tokenizer(place, base.places, options)
    adapted = _apply(base, place, options)
    model = adapted.get_base_model()
    files = tuple(digests.digest_files(place.directory, names))
    check_unchanged(before, read_identities(before))
    adapters.check_equals_peft(adapted)
    rotary = frequencies.find(model)
    if not batching_check.is_called_by(model, base.style, rotary, base.pass_dependence):
        raise ConfigurationError(
            "with its layers the model cannot be decoded as its base is: it gives other logits "
            "than in one pass over all tokens; serve the adapter alone, with --model"
        )
    # Weights of the heads are fitted for the base.
    probe, internals = build_probe(model, base.style, base.obstacle, None)
    graph = None
    if base.style is not None:
        graph = step_capture.capture_step(model, base.style, probe)
    info = NamedAdapter(
        name=place.name,
        identity=_identify(adapted, place, files, base.info),
        weights_digest=_digest_tensors(adapted),
        files=files,
        internals=internals,
        step_kernels=name_kernels(model, packed=graph is not None and graph.packed),
        directory=str(place.directory.resolve()),
    )
    return AdaptedModel(model, graph, probe, rotary, info)


def _apply(base: Base, place: AdapterPlace, options: EngineOptions) -> Any:
    """Return PEFT's model around a copy of the base, with the adapter's layers."""
    with (
        translate_errors(f"it cannot be added to {base.places.base}"),
        shared_copy.watch_writes(base.model) as written,
    ):
        copied = shared_copy.copy_modules(base.model)
        if adapters.changes_biases(place.directory):
            shared_copy.separate_biases(copied)
        adapted = adapters.apply_adapter(copied, place.directory, options.device)
        copied.to(options.device)
        copy_into_memory(copied, shared_with=base.model)
    if written:
        raise ConfigurationError(
            f"it changes tensors of its base ({', '.join(written[:3])}), which other requests use; "
            "serve it alone, with --model"
        )
    copied.eval().requires_grad_(False)
    return adapted


def _identify(
    adapted: Any, place: AdapterPlace, files: Sequence[FileDigest], served: ModelInfo
) -> AdapterInfo:
    return AdapterInfo(
        peft_type=adapted.peft_config["default"].peft_type.value,
        digest=digests.digest_model_files(files),
        base=place.base_name,
        base_model_digest=served.model_digest,
    )


def _digest_tensors(adapted: Any) -> str:
    """Return the digest of the adapter's tensors, with the names under which PEFT saves them."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings(action="ignore"):  # of biases, which it takes for lost matrices
        # PEFT would query the hub to find out whether saved embeddings have been resized.
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return digests.digest_weights(state)
