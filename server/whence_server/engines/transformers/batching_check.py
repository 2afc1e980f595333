"""Check, at load, of the ways in which a model can be called: in batches, or singly.

The arguments of a forward pass are read from its signature and config, and then tested, which
works for any architecture. Two prompts of different length, one of them read in two chunks, take
a step together, and the logits must equal those of a plain forward pass over each. A model that
numbers positions in its own way, attends to later tokens, or loses its state between chunks fails
the test. It is then tested with each sequence by itself, and refused if that fails too. Faults
that show only with long sequences are found by `frequencies`, and quantized layers whose results
differ between passes by `pass_dependence`.
"""

import inspect
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import frequencies
from whence_server.engines.transformers.context import read_max_context_length
from whence_server.engines.transformers.frequencies import Frequencies
from whence_server.engines.transformers.internals.probe import NO_PROBE
from whence_server.engines.transformers.pass_dependence import (
    find_pass_dependence,
    list_reference_passes,
)
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.solo import SoloRunner
from whence_server.engines.transformers.style import ForwardStyle

logger = logging.getLogger(__name__)

SLIDING = {"sliding_attention"}
ATTENTION = {"full_attention"} | SLIDING
TOPK_FIELDS = ("keep_window_size", "index_topk")
"""Config fields with the number of tokens that attention selects by topk (Doge, DeepSeek's
indexer)."""


def check_batching(
    model: Any, rotary: Frequencies | None = None, dependence: str | None = None
) -> ForwardStyle | None:
    """Find the fastest way to call the model that gives correct logits.

    Args:
        model: as loaded.
        rotary: the model's rotary modules that depend on length; found here if None.
        dependence: reason why results depend on the division into passes, "" if they do not; found
            here if None.

    Returns:
        The call style for a batch; None if every sequence has to be decoded by itself.

    Raises:
        ConfigurationError: even for a single sequence, the logits differ between decoding token
            by token and one pass.
    """
    name = type(model).__name__
    _refuse_switching_attention(model)
    rotary = frequencies.find(model) if rotary is None else rotary
    dependence = find_pass_dependence(model) if dependence is None else dependence
    obstacle = dependence or _find_obstacle(model, rotary)
    if obstacle is None:
        for style in _list_styles(model):
            if _works_together(model, style):
                return style
        obstacle = "its logits differ between a batch of two prompts and each prompt alone"
    if dependence:
        if not _works_as_generate(model, rotary, dependence):
            raise ConfigurationError(
                f"{name} cannot be decoded token by token: its logits differ from those of "
                f"generate's own passes, and {dependence}"
            )
    elif not _works_singly(model, rotary):
        raise ConfigurationError(
            f"{name} cannot be decoded token by token: with its cache or state it gives other "
            "logits than in one pass over all tokens"
        )
    logger.info("%s decodes each sequence by itself: %s", name, obstacle)
    return None


def is_called_by(
    model: Any, style: ForwardStyle | None, rotary: Frequencies, dependence: str
) -> bool:
    """Return whether a model gives correct logits if it is called in one way.

    Args:
        model: as loaded.
        style: call style for a batch; None to decode every sequence by itself.
        rotary: the model's rotary modules that depend on length.
        dependence: reason why results depend on the division into passes; "" if they do not.
    """
    if dependence:
        return _works_as_generate(model, rotary, dependence)
    if style is None:
        return _works_singly(model, rotary)
    return _works_together(model, style)


def _refuse_switching_attention(model: Any) -> None:
    """Refuse a model that changes its kind of attention by the length of what it reads.

    BigBird's block-sparse attention turns into full attention with the first short pass, and stays
    so: what a text gives would depend on the texts before it.

    Raises:
        ConfigurationError: it is one of these.
    """
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise ConfigurationError(
            f"{type(model).__name__} has attention_type block_sparse, which becomes full attention "
            'for good with the first short text: set "attention_type": "original_full" in its '
            "config.json"
        )


def _find_obstacle(model: Any, rotary: Frequencies) -> str | None:
    """Return a reason why the model cannot be batched, known without a test; None if none is."""
    if rotary:
        # The test's short prompts would not show this.
        return "its rotary frequencies depend on the longest position of a forward pass"
    if getattr(model, "_is_stateful", False):
        return "it keeps a recurrent state"
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return "its forward pass takes no past_key_values"
    if _selects_tokens(model):
        # Among equal scores topk selects by position, which differs between the columns of a
        # batch and a single sequence. The test's short prompts would not show this.
        return "its attention selects fewer tokens than its context holds"
    other = sorted(set(_read_layer_types(model)) - ATTENTION)
    return f"it has {', '.join(other)} layers" if other else None


def _selects_tokens(model: Any) -> bool:
    config = model.config.get_text_config(decoder=True)
    picked = [getattr(config, name, None) for name in TOPK_FIELDS]
    return any(isinstance(n, int) and n < read_max_context_length(config) for n in picked)


def _read_layer_types(model: Any) -> list[str]:
    layer_types, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    return layer_types


def _read_windows(model: Any) -> tuple[tuple[str, int | None], ...] | None:
    """Return the window of each kind of layer; None if layers of one kind have different ones."""
    windows: dict[str, int | None] = {}
    layers = zip(
        *get_layer_types_and_kwargs(model.config.get_text_config(decoder=True)), strict=True
    )
    for layer_type, arguments in layers:
        window = arguments.get("sliding_window") if layer_type in SLIDING else None
        if windows.setdefault(layer_type, window) != window:
            return None
    return tuple(windows.items())


def _list_styles(model: Any) -> Iterator[ForwardStyle]:
    """Yield the call styles to test for a batch, the fastest first."""
    parameters = inspect.signature(model.forward).parameters
    style = ForwardStyle(
        num_layers=len(_read_layer_types(model)),
        position_ids="position_ids" in parameters,
        logits_to_keep="logits_to_keep" in parameters,
        ready_mask=False,
    )
    windows = _read_windows(model)
    if windows is not None:
        yield replace(style, ready_mask=True, windows=windows)
    yield style


def _works_together(model: Any, style: ForwardStyle) -> bool:
    long, short = make_prompts(model)
    try:
        runner = Runner(model, style)
        for token_ids, chunks in ((long, (4, 2)), (short, (2,))):
            prompt = runner.start(token_ids[:-1])
            for num_tokens in chunks:
                runner.prefill(prompt, num_tokens, all_logits=False)
            runner.join(prompt)
        together = runner.decode([long[-1], short[-1]])
    except Exception as error:  # noqa: BLE001 - code of others: any failure means no
        logger.debug("%s cannot be called with %s: %s", type(model).__name__, style, error)
        return False
    return all(
        are_alike(model, logits, run_plain(model, token_ids)[-1])
        for logits, token_ids in zip(together, (long, short), strict=True)
    )


def _works_singly(model: Any, rotary: Frequencies) -> bool:
    """Decode two sequences in turns, which would mix up state kept in the model itself."""
    sequences = make_prompts(model)
    plain = [run_plain(model, token_ids) for token_ids in sequences]
    try:
        runner = SoloRunner(model, NO_PROBE, rotary, dependence="")
        for token_ids, expected in zip(sequences, plain, strict=True):
            prompt = runner.start(token_ids[:-2])
            logits = runner.prefill(prompt, len(token_ids) - 2, all_logits=True)
            if logits.shape != expected[:-2].shape or not are_alike(model, logits, expected[:-2]):
                return False
            runner.join(prompt)
        steps = [runner.decode([token_ids[i] for token_ids in sequences]) for i in (-2, -1)]
    except Exception as error:  # noqa: BLE001 - code of others: any failure means no
        logger.warning("%s cannot decode two sequences in turns: %r", type(model).__name__, error)
        return False
    return all(
        are_alike(model, logits, expected[-2:])
        for logits, expected in zip(torch.stack(steps, 1), plain, strict=True)
    )


def _works_as_generate(model: Any, rotary: Frequencies, dependence: str) -> bool:
    """Decode two sequences in turns, and compare with `generate`'s passes over each."""
    prompts = make_prompts(model)
    try:
        references = [list_reference_passes(model, token_ids) for token_ids in prompts]
        runner = SoloRunner(model, NO_PROBE, rotary, dependence)
        logits = []
        for token_ids in prompts:
            prompt = runner.start(list(token_ids))
            logits.append([runner.prefill(prompt, len(token_ids), all_logits=False)[-1]])
            runner.join(prompt)
        for i in range(len(references[0][0]) - 1):
            step = runner.decode([new[i] for new, _ in references])
            for made, row in zip(logits, step, strict=True):
                made.append(row)
    except Exception as error:  # noqa: BLE001 - code of others: any failure means no
        logger.warning("%s cannot decode two sequences in turns: %r", type(model).__name__, error)
        return False
    return all(
        are_alike(model, torch.stack(made), torch.stack(expected).to(made[0]))
        for made, (_, expected) in zip(logits, references, strict=True)
    )


def make_prompts(model: Any) -> tuple[list[int], list[int]]:
    """Return a prompt of seven tokens, and one of three."""
    vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
    long, short = ([(7 * i + 3) % vocabulary_size for i in range(n)] for n in (7, 3))
    return long, short


@torch.inference_mode()
def run_plain(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Return the logits [tokens, V] of one pass over all tokens."""
    input_ids = torch.tensor([token_ids], device=model.device)
    return model(input_ids=input_ids, use_cache=False).logits[0]


def are_alike(model: Any, logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether logits are equal up to rounding, relative to the largest; NaN equals NaN."""
    # The model's dtype, not the logits': some compute in half precision and return float32.
    tolerance = 1e-3 if torch.finfo(model.dtype).bits >= 32 else 1e-1
    scale = float(expected.nan_to_num().abs().max())
    return torch.allclose(logits, expected, rtol=0, atol=tolerance * scale, equal_nan=True)
