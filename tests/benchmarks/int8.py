"""Weights in int8 on the CPU: time of a step's linear layers, and perplexity, of the real model.

Weights are rounded to int8 with a scale for each output channel. Products are those of torch's own
kernels: with weights alone in int8 (the operation that torchao calls on the CPU), and with
activations in int8 too, scaled for each call. Texts are those of `help()`, which every Python has.
"""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from tables import format_row
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence_server.demo.corpus import load_documents
from whence_server.demo.real_model import ensure_real_model
from whence_server.engines.transformers.packed_linears import pack, use_packed_weights

NUM_ROWS = (1, 8)
NUM_REPEATS = 7
WINDOW_TOKENS = 512
NUM_WINDOWS = 3
LARGEST = 127
Multiply = Callable[[torch.Tensor], torch.Tensor]


class Way(NamedTuple):
    """A way to multiply with the weights of linear layers.

    Attributes:
        name: name in the table.
        dtype: type of activations and of all other operations.
        install: makes the linear layers of a model multiply so; its result has to live as long.
    """

    name: str
    dtype: torch.dtype
    install: Callable[[Any], object]
    install_for_texts: Callable[[Any], object] | None = None
    """The same with the same numbers up to rounding, where `install` is slow for many rows."""


def keep(_model: Any) -> None:
    """Leave torch's own product."""


def use_packed(model: Any) -> ExitStack:
    """Make linear layers multiply with packed weights, for the life of the result."""
    stack = ExitStack()
    stack.enter_context(use_packed_weights(*pack(model)))
    return stack


def use(make: Callable[[torch.Tensor], Multiply], model: Any) -> None:
    """Make each linear layer multiply with what is made of its weight."""
    for layer in list_layers(model):
        vars(layer)["forward"] = make(layer.weight.detach())


def list_layers(model: Any) -> list[torch.nn.Linear]:
    """Return the linear layers, the head included; none of the real model's has a bias."""
    return [part for part in model.modules() if type(part) is torch.nn.Linear]


def round_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight as int8 [out, in], and the scales [out] of its channels."""
    scales = weight.float().abs().amax(1).clamp(min=1e-8) / LARGEST
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def make_weight_only(weight: torch.Tensor) -> Multiply:
    rounded, scales = round_weight(weight)
    scales = scales.to(weight.dtype)

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        product = torch._weight_int8pack_mm(flat, rounded, scales)
        return product.view(*rows.shape[:-1], -1)

    return multiply


def make_rounded(weight: torch.Tensor) -> Multiply:
    rounded, scales = round_weight(weight)
    dequantized = (rounded * scales[:, None]).to(weight.dtype)
    return lambda rows: torch.nn.functional.linear(rows, dequantized)


def make_dynamic(weight: torch.Tensor) -> Multiply:
    rounded, scales = round_weight(weight)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings(action="ignore"):  # torch will remove these operations
        quantized = torch._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)
    packed = torch.ops.quantized.linear_prepack(quantized, None)

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.quantized.linear_dynamic(rows.float(), packed)
        return product.to(rows.dtype)

    return multiply


WEIGHTS_ALONE, ROUNDED = partial(use, make_weight_only), partial(use, make_rounded)
WAYS = (
    Way("float32", torch.float32, keep),
    Way("float32, packed weights", torch.float32, use_packed),
    Way("bfloat16", torch.bfloat16, keep),
    Way("bfloat16, packed weights", torch.bfloat16, use_packed),
    Way("weights in int8, float32", torch.float32, WEIGHTS_ALONE, ROUNDED),
    Way("weights in int8, bfloat16", torch.bfloat16, WEIGHTS_ALONE, ROUNDED),
    Way("weights and activations in int8, float32", torch.float32, partial(use, make_dynamic)),
)


@torch.inference_mode()
def time_layers(model: Any, num_rows: int) -> Callable[[], float]:
    """Return a function that runs all linear layers once, and returns the milliseconds it took."""
    layers = list_layers(model)
    source = torch.Generator().manual_seed(0)
    rows = {
        size: torch.randn((num_rows, 1, size), generator=source).to(model.dtype)
        for size in {layer.in_features for layer in layers}
    }

    @torch.inference_mode()
    def run_once() -> float:
        began = time.perf_counter()
        for layer in layers:
            layer(rows[layer.in_features])
        return (time.perf_counter() - began) * 1e3

    return run_once


@torch.inference_mode()
def measure_perplexity(model: Any, windows: list[torch.Tensor]) -> float:
    """Return the perplexity of the windows' tokens after the first."""
    total = 0.0
    for window in windows:
        logits = model(window[None]).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return math.exp(total / (len(windows) * (WINDOW_TOKENS - 1)))


def cut_windows(directory: str) -> list[torch.Tensor]:
    """Return windows of tokens of the texts of `help()`."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer("\n\n".join(load_documents().values())).input_ids
    step = len(ids) // NUM_WINDOWS
    return [torch.tensor(ids[i * step : i * step + WINDOW_TOKENS]) for i in range(NUM_WINDOWS)]


def run(runs: int) -> None:
    """Print the table; times are medians of repetitions in which all ways take turns."""
    directory = str(ensure_real_model())
    windows = cut_windows(directory)
    models, kept = [], []
    for way in WAYS:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=way.dtype).eval()
        kept.append(way.install(model))
        models.append(model)
    tasks = [[time_layers(model, num_rows) for num_rows in NUM_ROWS] for model in models]
    found = [
        [[task() for task in of_way] for of_way in tasks] for _ in range(1 + runs * NUM_REPEATS)
    ][1:]
    columns = " | ".join(f"linear layers, {num} row{'s' * (num > 1)}, ms" for num in NUM_ROWS)
    print(f"| real model | {columns} | perplexity |\n| --- |" + " ---: |" * (len(NUM_ROWS) + 1))
    for i, (way, model) in enumerate(zip(WAYS, models, strict=True)):
        times = [f"{median(one[i][j] for one in found):.1f}" for j in range(len(NUM_ROWS))]
        if way.install_for_texts is not None:
            way.install_for_texts(model)
        perplexity = measure_perplexity(model, windows)
        print(format_row([way.name, *times, f"{perplexity:.3f}"]), flush=True)
