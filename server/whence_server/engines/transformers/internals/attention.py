"""The attention function that models are served with, which can give the attention weights.

transformers' models look their attention function up by name, so that one function serves all.
For several tokens it calls the model's original. For one token in float32 it computes
softmax(q K) V step by step, which is as fast as the fused kernel and gives the weights. In half
precision that would round the scores, so the original computes the output, and the weights are
computed separately when a probe reads them. Probing never changes the model's output.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch.jit._trace import is_tracing
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAMES = {"sdpa": "whence_sdpa", "eager": "whence_eager"}
"""Names of our functions, by the names of transformers' functions that they replace."""
NONE_ATTENDS = "its layers are recurrent, or have attention code of their own"
NOT_HANDLED = ("s_aux", "position_bias", "sinks", "head_mask", "alibi")
"""Arguments with which some models change the weights, and which we do not implement."""


class NotHandledError(Exception):
    """The model's attention is not softmax(q K) V with a mask and a soft cap."""


class LayerAttention(NamedTuple):
    """One layer's attention in a probed forward pass.

    Columns are positions, the newest last; a layer with a window may have only its last columns.

    Attributes:
        module: the layer's attention module.
        weights: float32 [rows, heads, columns], of the newest token, or of the one that was
            asked for, without columns after it; they sum to 1.
        values: [rows, value heads, columns, head size].
        output: [rows, tokens, heads, head size].
    """

    module: torch.nn.Module
    weights: torch.Tensor
    values: torch.Tensor
    output: torch.Tensor


class ReadAttention(Protocol):
    """Computes one layer's attention, when a probe asks for it."""

    def __call__(self, back: int = 0) -> LayerAttention:
        """Return the attention of the token that many places before the newest."""
        ...


_callbacks: list[Callable[[ReadAttention], None]] = []
"""Callbacks of the active probes, the innermost last. The engine computes in one thread."""


@contextmanager
def collect_attention() -> Iterator[list[LayerAttention]]:
    """Collect the layers' attention in the forward passes within the context."""
    attended: list[LayerAttention] = []
    with probe_attention(lambda read: attended.append(read())):
        yield attended


@contextmanager
def probe_attention(callback: Callable[[ReadAttention], None]) -> Iterator[None]:
    """Call `callback` with each layer's attention in the forward passes within the context."""
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.pop()


def adopt(model: Any) -> str | None:
    """Replace the model's attention function by ours, if ours can compute it.

    Returns:
        The reason why it cannot, with the model left unchanged; None if ours is in place.
    """
    original = get_implementation(model)
    if original not in NAMES:
        return f"its attention is {original!r}, and neither sdpa nor eager"
    install(model)
    try:
        with torch.inference_mode(), collect_attention() as attended:
            model(input_ids=torch.zeros((1, 2), dtype=torch.int64, device=model.device))
        obstacle = None if attended else NONE_ATTENDS
    except Exception as error:  # noqa: BLE001 - foreign code, tried out: any failure means no
        obstacle = f"its attention cannot be served: {error}"
    kinds = {type(module) for module in model.modules()}
    if obstacle is None and any(_asks_for(kind, original) for kind in kinds):
        obstacle = f"its layers' code compares the name of its attention with {original!r}"
    if obstacle is not None:
        restore(model)
    return obstacle


def _asks_for(kind: type[torch.nn.Module], name: str) -> bool:
    """Return whether a layer's code compares the name of its attention function with `name`.

    Layers that select tokens (DeepSeek's indexer, MiniMax-M3's blocks) mask the others only if the
    name is one of transformers' own; otherwise they silently attend to all tokens. The short
    prompts with which a model is tested do not show this.
    """
    if kind.__module__.startswith("torch.") or issubclass(kind, PreTrainedModel):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # code without a file
        return False
    return any(
        any(
            isinstance(part, ast.Attribute) and part.attr == "_attn_implementation"
            for part in parts
        )
        and any(isinstance(part, ast.Constant) and part.value == name for part in parts)
        for parts in (
            list(ast.walk(node)) for node in ast.walk(tree) if isinstance(node, ast.Compare)
        )
    )


def install(model: Any) -> None:
    """Replace the attention function of a model that `adopt` has accepted before."""
    model.set_attn_implementation(NAMES[get_implementation(model)])


def restore(model: Any) -> None:
    """Give the model its original attention function back."""
    original = get_original_implementation(model)
    if get_implementation(model) != original:
        model.set_attn_implementation(original)


def get_implementation(model: Any) -> str:
    """Return the name of the attention function that the model looks up."""
    config = model.config.get_text_config(decoder=True)
    return str(config._attn_implementation)  # noqa: SLF001 - no other way


def get_original_implementation(model: Any) -> str:
    """Return transformers' own name of the model's attention: "sdpa", "eager", ..."""
    name = get_implementation(model)
    return next((original for original, ours in NAMES.items() if ours == name), name)


def _get_original_eager(module: torch.nn.Module) -> Any:
    """Return the eager attention of the module's modelling file; each file has its own."""
    return sys.modules[type(module).__module__].eager_attention_forward


def _wrap(original: Callable[[torch.nn.Module], Any]) -> Any:
    """Return our attention function for the original that it replaces."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute attention, with transformers' signature: [rows, tokens, heads, head size]."""
        for name in NOT_HANDLED:
            if arguments.get(name) is not None:
                raise NotHandledError(f"it takes {name}")
        weights = None
        # A captured graph has one token; reading the shape would add a branch to the graph.
        if query.dtype == torch.float32 and (is_tracing() or query.shape[2] == 1):
            weights = _compute_weights(module, query, key, attention_mask, **arguments)
            output = torch.matmul(weights, value).flatten(1, 2).unsqueeze(1)
        else:
            output, _ = original(module)(module, query, key, value, attention_mask, **arguments)
        if _callbacks:

            def read(back: int = 0) -> LayerAttention:
                own_weights = weights
                if own_weights is None:
                    token = slice(query.shape[2] - 1 - back, query.shape[2] - back)
                    mask = None if attention_mask is None else attention_mask[:, :, token]
                    keys = key[:, :, : key.shape[2] - back]
                    own_weights = _compute_weights(
                        module, query[:, :, token], keys, mask, **arguments
                    )
                return LayerAttention(module, own_weights.flatten(1, 2), value, output)

            _callbacks[-1](read)
        return output, None

    return attend


AttentionInterface.register(NAMES["sdpa"], _wrap(lambda _module: sdpa_attention_forward))
AttentionInterface.register(NAMES["eager"], _wrap(_get_original_eager))
# Without a mask function of the same name, transformers silently makes no masks.
AttentionMaskInterface.register(NAMES["sdpa"], sdpa_mask)
AttentionMaskInterface.register(NAMES["eager"], eager_mask)


def _compute_weights(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_others: Any,
) -> torch.Tensor:
    """Compute one token's weights: float32 [rows, key heads, query heads of each, columns].

    Args:
        module: attention module; may have `num_key_value_groups`, the query heads of a key head.
        query: [rows, heads, 1, head size]
        key: [rows, key heads, columns, head size]
        mask: [rows, 1, 1, columns]: added to the scores; or boolean, True for visible columns.
        scaling: factor of the scores; None for 1 / sqrt(head size).
        softcap: bound of the scores' absolute value, by tanh; None for no bound.
    """
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    num_sharing = getattr(module, "num_key_value_groups", 1)
    query = (query * scaling).unflatten(1, (-1, num_sharing)).squeeze(-2)
    scores = torch.matmul(query, key.transpose(2, 3))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        if not is_tracing():
            mask = mask[..., : key.shape[2]]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    return torch.softmax(scores, -1, dtype=torch.float32)
