"""Finds out what can be seen inside a model, by trying: what cannot be has a reason."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import InternalsInfo
from whence_server.engine.cache import BatchedCache
from whence_server.engine.internals.attention import Attended, watched_attention
from whence_server.engine.internals.head_weights import HeadWeights
from whence_server.engine.internals.lens import Lens, lens_of
from whence_server.engine.internals.observing import Inside
from whence_server.engine.internals.sources import (
    METHOD,
    ModuleInput,
    OutputNorms,
    UnavailableError,
    drawn,
    projections,
)
from whence_server.engine.style import ForwardStyle

logger = logging.getLogger(__name__)

PROMPT_LENGTH = 6


def look_inside(
    model: Any,
    style: ForwardStyle | None,
    obstacle: str | None,
    head_weights: HeadWeights | None,
) -> tuple[Inside, InternalsInfo]:
    """What can be seen of a model, and what is said of it.

    Args:
        model: in eval mode, with our attention in place if there is no obstacle.
        style: how it is called; None where every sequence decodes by itself.
        obstacle: to sources, if one is known already.
        head_weights: theta; None for 1.

    Raises:
        ConfigurationError: `head_weights` are not one for each head, or the model gives no
            sources that they could weigh.
    """
    unavailable: dict[str, str] = {}
    norms: OutputNorms | None = None
    lens: Lens | None = None
    try:
        norms = _norms_of(model, style, obstacle, head_weights)
    except UnavailableError as reason:
        unavailable["sources"] = str(reason)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - foreign code, tried out: any failure means no
        unavailable["sources"] = f"it cannot be taken apart: {type(error).__name__}: {error}"
    try:
        lens = lens_of(model)
    except UnavailableError as reason:
        unavailable["layers"] = str(reason)
    if head_weights is not None and norms is None:
        raise ConfigurationError(
            "--head-weights: the model gives no sources for them to weigh: "
            + unavailable["sources"]
        )
    for part, why in unavailable.items():
        logger.info("%s gives no %s: %s", type(model).__name__, part, why)
    method = ""
    if norms is not None:
        method = METHOD
        if head_weights is not None:
            method += f";head-weights=sha256:{head_weights.digest}"
    return Inside(norms, lens), InternalsInfo(method, unavailable)


@torch.inference_mode()
def _norms_of(
    model: Any, style: ForwardStyle | None, obstacle: str | None, head_weights: HeadWeights | None
) -> OutputNorms:
    if style is None or obstacle is not None:
        alone = "it decodes each sequence by itself, where sources are not worked out yet"
        raise UnavailableError(obstacle or alone)
    num_layers = style.num_layers
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    ids = [(11 * i + 5) % vocabulary_size for i in range(PROMPT_LENGTH)]
    cache = BatchedCache(num_layers, len(ids))
    modules = _attention_modules(model)
    with _linear_inputs(modules) as inputs, watched_attention() as attended:
        input_ids = torch.tensor([ids], device=model.device)
        model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    if len(attended) != num_layers:
        raise UnavailableError(f"{len(attended)} of its {num_layers} layers attend by our function")
    for layer, one in zip(cache.layers, attended, strict=True):
        _check(one, layer.values[:, :, layer.start : layer.end])
    num_value_heads = {one.values.shape[1] for one in attended}
    if len(num_value_heads) > 1:
        raise UnavailableError("its layers keep different numbers of value heads")
    found = projections(attended, inputs)
    norms = OutputNorms(found, num_value_heads.pop(), head_weights.values if head_weights else None)
    _try(norms, attended, cache)
    return norms


def _try(norms: OutputNorms, attended: Sequence[Attended], cache: BatchedCache) -> None:
    """What is done in every step, on the pass that was watched."""
    of_each = norms.of([layer[0] for layer in cache.values]).unsqueeze(0)
    shares = drawn([one.weights for one in attended], of_each, None)
    if not torch.isfinite(shares).all():
        raise UnavailableError("what its heads read comes to no number")


def _check(attended: Attended, values: torch.Tensor) -> None:
    """Whether the weights and the cached values are what the heads' outputs are made of."""
    if not (attended.values.shape == values.shape and torch.equal(attended.values, values)):
        raise UnavailableError("its attention reads other values than its cache holds")
    weights = attended.weights  # (1, heads, columns)
    sharing = weights.shape[1] // values.shape[1]
    spread = values.repeat_interleave(sharing, 1)
    output = torch.einsum("bhj,bhjd->bhd", weights.float(), spread.float())
    expected = attended.output[:, -1].float()
    tolerance = 1e-3 if torch.finfo(values.dtype).bits >= 32 else 5e-2
    if not torch.allclose(output, expected, rtol=0, atol=tolerance * float(expected.abs().max())):
        raise UnavailableError("its heads give something else than their weights' mean of values")


def _attention_modules(model: Any) -> list[torch.nn.Module]:
    """The modules that call our function; found by watching a pass."""
    with watched_attention() as attended:
        model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device))
    return [one.module for one in attended]


@contextmanager
def _linear_inputs(modules: Sequence[torch.nn.Module]) -> Iterator[list[ModuleInput]]:
    """Collects what the weight matrices within these modules are given."""
    inputs: list[ModuleInput] = []
    handles = []
    for attention in modules:
        for module in attention.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor) and weight.dim() == 2:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda called, args, attention=attention: inputs.append(
                            ModuleInput(attention, called, args[0])
                        )
                    )
                )
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
