"""Quantized checkpoints: the tokens are those of `generate`, in batches or one by one.

Most need packages that whence does not install: `make test-quantized` does, apart from ours.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_harness import Harness, greedy, loaded_model, prompt_of, reference_greedy
from quantizing import save_as_fp8, save_with_bitsandbytes, save_with_compressed_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence_server.engines.transformers.loading import LoadedModel

TEXTS = ["The capital of France is", "Water boils when", "def add(a, b):\n"]
NUM_NEW = 24


def check_equals_generate(loaded: LoadedModel, directory: Path, prompts: list[list[int]]) -> None:
    """Compare prompts that decode side by side with `generate` on a model of its own."""
    harness = Harness(loaded)
    for i, prompt in enumerate(prompts):
        harness.admit(str(i), prompt, greedy(NUM_NEW, ignore_eos=True))
    harness.run()
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=loaded.model.dtype).eval()
    for i, prompt in enumerate(prompts):
        wanted = reference_greedy(reference, prompt, max_new_tokens=NUM_NEW, eos_token_id=None)
        assert harness.ids(str(i)) == wanted


def test_fp8_is_dequantized_and_batched(
    tiny_model: Callable[..., Path], tmp_path: Path, one_thread: None
) -> None:
    directory = save_as_fp8(tiny_model("llama"), tmp_path / "fp8")
    loaded = loaded_model(directory, dtype="auto")
    assert loaded.info.batched
    assert (loaded.info.source.quantization, loaded.info.source.dequantized) == ("fp8", True)
    check_equals_generate(loaded, directory, [prompt_of(20, 1), prompt_of(7, 2)])


def need(package: str) -> Any:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed: `make test-quantized`",
    )


def save_in_4_bits(source: Path, target: Path) -> Path:
    return save_with_bitsandbytes(source, target, 4)


def save_in_8_bits(source: Path, target: Path) -> Path:
    return save_with_bitsandbytes(source, target, 8)


def save_by(preset: str) -> Callable[[Path, Path], Path]:
    return lambda source, target: save_with_compressed_tensors(source, target, preset)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("save", "method", "batched"),
    [
        # Batched unless the processor has kernels that compute in half precision.
        pytest.param(save_in_4_bits, "bitsandbytes", None, marks=need("bitsandbytes")),
        pytest.param(save_in_8_bits, "bitsandbytes", False, marks=need("bitsandbytes")),
        *(
            pytest.param(
                save_by(preset), "compressed-tensors", batched, marks=need("compressed_tensors")
            )
            for preset, batched in (("W4A16", True), ("W8A8", False), ("FP8_DYNAMIC", False))
        ),
    ],
    ids=["bnb4", "bnb8", "W4A16", "W8A8", "FP8_DYNAMIC"],
)
def test_a_real_model_gives_the_tokens_of_generate(
    real_model: Path,
    tmp_path: Path,
    save: Callable[[Path, Path], Path],
    method: str,
    batched: bool | None,
) -> None:
    directory = save(real_model, tmp_path / "quantized")
    loaded = loaded_model(directory, dtype="auto")
    assert loaded.info.source.quantization == method
    assert batched in {None, loaded.info.batched}
    tokenizer = AutoTokenizer.from_pretrained(directory)
    check_equals_generate(loaded, directory, [tokenizer(text).input_ids for text in TEXTS])
