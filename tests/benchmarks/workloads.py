"""Workloads of all benchmarks: models with random weights, prompts, decoding."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "bench"
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 128
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
"""Device of the engine and its peers; `run.py --device` sets it for all processes."""
TEMPERATURE = 0.8
TOP_P = 0.95


@dataclass(frozen=True)
class Workload:
    """A GPT-2 shape; float32, random weights."""

    name: str
    num_layers: int
    width: int
    num_heads: int
    vocabulary_size: int

    def __str__(self) -> str:
        return f"{self.name} ({self.num_layers} x {self.width}, V {self.vocabulary_size:,})"


S = Workload("S", 4, 128, 4, 4_096)
M = Workload("M", 6, 384, 6, 8_192)
L = Workload("L", 12, 768, 12, 50_257)
WORKLOADS = {w.name: w for w in (S, M, L)}


def prompt(index: int, vocabulary_size: int, num_tokens: int = NUM_PROMPT_TOKENS) -> list[int]:
    """Return the prompt of one stream, the same for both sides."""
    rng = random.Random(index)
    return [rng.randrange(1, vocabulary_size) for _ in range(num_tokens)]


def find_directory(workload: Workload, num_positions: int = 8_192) -> Path:
    """Return the directory of the workload's model, which is made once."""
    directory = BUILD / f"model-{workload.name}-{num_positions}"
    if not (directory / "model.safetensors").exists():
        _save(workload, num_positions, directory)
    return directory


def _save(workload: Workload, num_positions: int, directory: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the tokens of a benchmark mean nothing"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        directory
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=workload.vocabulary_size,
        n_positions=num_positions,
        n_embd=workload.width,
        n_layer=workload.num_layers,
        n_head=workload.num_heads,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
