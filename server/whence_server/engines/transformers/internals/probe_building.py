"""Construction of a model's probe by trial; each part that is unavailable has a reason."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import InternalsInfo
from whence_server.engines.transformers.cache import BatchedCache
from whence_server.engines.transformers.internals.attention import LayerAttention, collect_attention
from whence_server.engines.transformers.internals.head_weights import HeadWeights
from whence_server.engines.transformers.internals.lens import Lens, build_lens
from whence_server.engines.transformers.internals.probe import NO_PROBE, Probe
from whence_server.engines.transformers.internals.sources import (
    METHOD,
    ModuleInput,
    OutputNorms,
    UnavailableError,
    find_projections,
    read_context,
)
from whence_server.engines.transformers.solo import SoloRunner
from whence_server.engines.transformers.style import ForwardStyle

logger = logging.getLogger(__name__)

PROMPT_LENGTH = 6


def build_probe(
    model: Any,
    style: ForwardStyle | None,
    obstacle: str | None,
    head_weights: HeadWeights | None,
) -> tuple[Probe, InternalsInfo]:
    """Return a model's probe, and the description of the internals that it gives.

    Args:
        model: in eval mode, with our attention in place if there is no obstacle.
        style: call style for a batch; None if every sequence decodes by itself.
        obstacle: reason why the model gives no sources, if known already.
        head_weights: theta; None for 1.

    Raises:
        ConfigurationError: `head_weights` do not match the model's heads, or the model gives no
            sources.
    """
    unavailable: dict[str, str] = {}
    norms: OutputNorms | None = None
    lens: Lens | None = None
    try:
        norms = _build_norms(model, style, obstacle, head_weights)
    except UnavailableError as reason:
        unavailable["sources"] = str(reason)
    except ConfigurationError:
        raise
    except Exception as error:  # noqa: BLE001 - foreign code, tried out: any failure means no
        unavailable["sources"] = f"its attention cannot be read: {type(error).__name__}: {error}"
    try:
        lens = build_lens(model)
    except UnavailableError as reason:
        unavailable["layers"] = str(reason)
    if head_weights is not None and norms is None:
        raise ConfigurationError(
            "--head-weights: the model gives no sources, which the weights are for: "
            + unavailable["sources"]
        )
    for part, why in unavailable.items():
        logger.info("%s gives no %s: %s", type(model).__name__, part, why)
    method = ""
    if norms is not None:
        method = METHOD
        if head_weights is not None:
            method += f";head-weights=sha256:{head_weights.digest}"
    probe = NO_PROBE if norms is None and lens is None else Probe(norms, lens)
    return probe, InternalsInfo(method, unavailable)


@torch.inference_mode()
def _build_norms(
    model: Any, style: ForwardStyle | None, obstacle: str | None, head_weights: HeadWeights | None
) -> OutputNorms:
    if obstacle is not None:
        raise UnavailableError(obstacle)
    ids = _make_tokens(model)
    ours = None if style is None else BatchedCache(style.num_layers)
    arguments = {} if ours is None else {"past_key_values": ours}
    with (
        _collect_linear_inputs(_find_attention_modules(model)) as inputs,
        collect_attention() as attended,
    ):
        input_ids = torch.tensor([ids], device=model.device)
        output = model(input_ids=input_ids, use_cache=True, **arguments)
    if ours is None:
        check_own_cache(model, attended, output)
    else:
        _check_cached(attended, ours)
    for one in attended:
        _check_weights(one)
    num_value_heads = {one.values.shape[1] for one in attended}
    if len(num_value_heads) > 1:
        raise UnavailableError("its layers keep different numbers of value heads")
    found = find_projections(attended, inputs)
    norms = OutputNorms(found, num_value_heads.pop(), head_weights.values if head_weights else None)
    of_each = norms.compute([one.values[0] for one in attended]).unsqueeze(0)
    weights = [one.weights for one in attended]
    read = read_context(weights, of_each, None)
    if not torch.isfinite(read.contributions).all():
        raise UnavailableError("the norms of what its heads read are not finite")
    if style is None:
        shares = read.contributions[0] / read.contributions.sum()
        _check_singly(model, norms, ids, shares.masked_fill(read.sinks[0], 0))
    return norms


def _make_tokens(model: Any) -> list[int]:
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    return [(11 * i + 5) % vocabulary_size for i in range(PROMPT_LENGTH)]


def _check_cached(attended: Sequence[LayerAttention], cache: BatchedCache) -> None:
    """Check that every layer attends by our function, to the values in our cache."""
    _check_all_attend(len(attended), len(cache.layers))
    for one, values in zip(attended, cache.values, strict=True):
        if not (one.values.shape == values.shape and torch.equal(one.values, values)):
            raise UnavailableError("its attention reads other values than its cache holds")


def check_own_cache(model: Any, attended: Sequence[LayerAttention], output: Any) -> None:
    """Check that all attention is by our function, over columns of known order."""
    cache = output.get("past_key_values")
    kept = [
        layer
        for layer in (cache.layers if isinstance(cache, Cache) else ())
        if getattr(layer, "values", None) is not None
    ]
    # DynamicLayer and its subclasses keep the newest positions in order, with any window.
    if not kept or not all(isinstance(layer, DynamicLayer) for layer in kept):
        raise UnavailableError("it keeps its values in a cache of its own kind")
    # There may be more attending layers than cache layers, as some share a cache layer.
    _check_all_attend(len(attended), len(kept))
    seen = {one.module for one in attended}
    kinds = {type(module) for module in seen}
    alike = {module for module in model.modules() if type(module) in kinds}
    _check_all_attend(len(seen), len(alike))


def _check_all_attend(num_seen: int, num_layers: int) -> None:
    if num_seen < num_layers:
        raise UnavailableError(
            f"only {num_seen} of its {num_layers} attention layers use our function"
        )


def _check_singly(
    model: Any, norms: OutputNorms, ids: Sequence[int], expected: torch.Tensor
) -> None:
    """Check that decoding token by token gives the sources of one pass over all tokens.

    Args:
        model: a model that decodes each sequence by itself.
        norms: the model's norms.
        ids: tokens.
        expected: [tokens], the last token's shares in one pass; 0 for sinks.
    """
    runner = SoloRunner(model, Probe(norms, None), dependence="")
    prompt = runner.start(list(ids[:-2]), probed=True)
    runner.prefill(prompt, len(ids) - 2, all_logits=False)
    runner.join(prompt)
    for token_id in ids[-2:]:
        runner.decode([token_id])
        readout = runner.read_probe()
    shares = expected.new_zeros(len(ids))
    if readout is not None:
        (sources,) = readout.sources
        shares[sources.positions] = shares.new_tensor(sources.shares)
        shares[-1] = sources.self_share or 0.0
    tolerance = 1e-3 if torch.finfo(model.dtype).bits >= 32 else 5e-2
    if not torch.allclose(shares, expected, rtol=0, atol=tolerance):
        raise UnavailableError("its sources differ between one pass and decoding token by token")


def _check_weights(attended: LayerAttention) -> None:
    """Check that the heads' outputs are the weighted sums of the values."""
    weights, values = attended.weights, attended.values  # (1, heads, columns)
    sharing = weights.shape[1] // values.shape[1]
    spread = values.repeat_interleave(sharing, 1)
    output = torch.einsum("bhj,bhjd->bhd", weights.float(), spread.float())
    expected = attended.output[:, -1].float()
    tolerance = 1e-3 if torch.finfo(values.dtype).bits >= 32 else 5e-2
    if not torch.allclose(output, expected, rtol=0, atol=tolerance * float(expected.abs().max())):
        raise UnavailableError("its heads' outputs are not the weighted sums of their values")


def _find_attention_modules(model: Any) -> list[torch.nn.Module]:
    """Return the modules that call our function in a forward pass."""
    with collect_attention() as attended:
        model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device))
    return [one.module for one in attended]


@contextmanager
def _collect_linear_inputs(modules: Sequence[torch.nn.Module]) -> Iterator[list[ModuleInput]]:
    """Collect the inputs of the submodules that have a weight matrix, within the context."""
    inputs: list[ModuleInput] = []
    handles = []
    for attention in dict.fromkeys(modules):  # several layers may share one
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
