"""The attention function that a model is served with, whether or not anyone asks for weights.

transformers' models look their attention up by name, so one function serves them all. Over many
tokens it is the model's original one. At one token in float32 it is softmax(q K) V spelt out,
which costs what the fused kernel costs and has the weights in its hands. In half precision, where
spelling it out would round the scores, the original computes there too, and the weights are
computed beside it when somebody asks. Either way, asking changes no bit of what the model says.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.jit._trace import is_tracing
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAMES = {"sdpa": "whence_sdpa", "eager": "whence_eager"}
"""What stands in for each of transformers' own."""
NONE_ATTENDS = "its layers are recurrent, or have attention code of their own"
NOT_HANDLED = ("s_aux", "position_bias", "sinks", "head_mask", "alibi")
"""Arguments by which some models change the weights in ways of their own."""


class NotHandledError(Exception):
    """The model's attention is something else than softmax(q K) V with a mask and a soft cap."""


class LayerAttention(NamedTuple):
    """What one layer's attention did in a pass that is watched.

    Columns are positions, the newest last; a layer that sees few may be given those alone.

    Attributes:
        module: the layer's attention.
        weights: float32 [rows, heads, columns], of the newest token; they add up to 1.
        values: [rows, value heads, columns, head size].
        output: [rows, tokens, heads, head size].
    """

    module: torch.nn.Module
    weights: torch.Tensor
    values: torch.Tensor
    output: torch.Tensor


ReadAttention = Callable[[], LayerAttention]
"""Works out what a layer did, for whoever watches."""

_callbacks: list[Callable[[ReadAttention], None]] = []
"""Whoever watches, the innermost last. The engine computes in one thread."""


@contextmanager
def collect_attention() -> Iterator[list[LayerAttention]]:
    """Collect all that the layers' attention does in the passes within."""
    attended: list[LayerAttention] = []
    with probe_attention(lambda read: attended.append(read())):
        yield attended


@contextmanager
def probe_attention(callback: Callable[[ReadAttention], None]) -> Iterator[None]:
    """Let `callback` look at each layer's attention in the passes within."""
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.pop()


def adopt(model: Any) -> str | None:
    """Put our function into the model's place, if its attention can be served by it.

    Returns:
        Why not; then the model is as it was. None where it is in place.
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
        obstacle = f"its layers do something else where their attention is not called {original!r}"
    if obstacle is not None:
        restore(model)
    return obstacle


def _asks_for(kind: type[torch.nn.Module], name: str) -> bool:
    """Tell whether a layer's code compares the name of its attention with this one.

    Layers that pick tokens (DeepSeek's indexer, MiniMax-M3's blocks) hide the others only where the
    name is one of transformers' own, and see all of them without a word where it is not. Prompts as
    short as those that a model is tried with do not show it.
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
    """Put our function into the place of an original that it has served before."""
    model.set_attn_implementation(NAMES[get_implementation(model)])


def restore(model: Any) -> None:
    """Return the model its original attention back."""
    original = get_original_implementation(model)
    if get_implementation(model) != original:
        model.set_attn_implementation(original)


def get_implementation(model: Any) -> str:
    """The name of the attention that the model looks up."""
    config = model.config.get_text_config(decoder=True)
    return str(config._attn_implementation)  # noqa: SLF001 - no other way


def get_original_implementation(model: Any) -> str:
    """What transformers itself calls it: "sdpa", "eager", ..."""
    name = get_implementation(model)
    return next((original for original, ours in NAMES.items() if ours == name), name)


def _get_original_eager(module: torch.nn.Module) -> Any:
    """Every modelling file has its own, by this name."""
    return sys.modules[type(module).__module__].eager_attention_forward


def _wrap(original: Callable[[torch.nn.Module], Any]) -> Any:
    """Our function, with what it stands in for."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **arguments: Any,
    ) -> tuple[torch.Tensor, None]:
        """As transformers calls it; gives [rows, tokens, heads, head size]."""
        for name in NOT_HANDLED:
            if arguments.get(name) is not None:
                raise NotHandledError(f"it takes {name}")
        weights = None
        # What is captured as a graph is one token: to ask would be a branch in it.
        if query.dtype == torch.float32 and (is_tracing() or query.shape[2] == 1):
            weights = _compute_weights(module, query, key, attention_mask, **arguments)
            output = torch.matmul(weights, value).flatten(1, 2).unsqueeze(1)
        else:
            output, _ = original(module)(module, query, key, value, attention_mask, **arguments)
        if _callbacks:

            def read() -> LayerAttention:
                newest_weights = weights
                if newest_weights is None:
                    newest = None if attention_mask is None else attention_mask[:, :, -1:]
                    newest_weights = _compute_weights(
                        module, query[:, :, -1:], key, newest, **arguments
                    )
                return LayerAttention(module, newest_weights.flatten(1, 2), value, output)

            _callbacks[-1](read)
        return output, None

    return attend


AttentionInterface.register(NAMES["sdpa"], _wrap(lambda _module: sdpa_attention_forward))
AttentionInterface.register(NAMES["eager"], _wrap(_get_original_eager))
# Without its mask function under the same name, transformers makes no masks, and says nothing.
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
    """Of one token: float32 [rows, key heads, query heads that share one, columns].

    Args:
        module: may say how many query heads share a key's.
        query: [rows, heads, 1, head size]
        key: [rows, key heads, columns, head size]
        mask: [rows, 1, 1, columns], added to the scores, or True for what is seen.
        scaling: of the scores; None for the usual one.
        softcap: keeps the scores within plus and minus itself.
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
