"""Workloads of all benchmarks: models, prompts, decoding.

S, M and L have random weights. R is the demo's real model, SmolLM2-135M-Instruct, in float32 and
in bfloat16.
"""

import json
import os
import random
from dataclasses import dataclass, replace
from pathlib import Path

from whence_server.demo.real_model import ensure_real_model
from whence_server.domain.errors import ConfigurationError

BUILD = Path(__file__).parents[2] / "build" / "bench"
NUM_PROMPT_TOKENS = 32
NUM_NEW_TOKENS = 128
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
"""Device of the engine and its peers; `run.py --device` sets it for all processes."""
TEMPERATURE = 0.8
TOP_P = 0.95


@dataclass(frozen=True)
class Workload:
    """A GPT-2 shape with random weights, or the real model."""

    name: str
    num_layers: int
    width: int
    num_heads: int
    vocabulary_size: int
    dtype: str = "float32"
    num_value_heads: int = 0
    """0: as many as heads."""
    is_real: bool = False

    def __str__(self) -> str:
        shape = f"{self.num_layers} x {self.width}, V {self.vocabulary_size:,}"
        return f"{self.name[0]} ({shape}{f', {self.dtype}' if self.is_real else ''})"

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of a server of this workload."""
        return ("--dtype", self.dtype)

    @property
    def keys_and_values_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        width = self.width // self.num_heads * (self.num_value_heads or self.num_heads)
        return 2 * self.num_layers * width * (2 if self.dtype == "bfloat16" else 4)


S = Workload("S", 4, 128, 4, 4_096)
M = Workload("M", 6, 384, 6, 8_192)
L = Workload("L", 12, 768, 12, 50_257)
R32 = Workload("R32", 30, 576, 9, 49_152, "float32", num_value_heads=3, is_real=True)
R16 = replace(R32, name="R16", dtype="bfloat16")
WORKLOADS = {w.name: w for w in (S, M, L, R32, R16)}
CHOICES = {"S": ["S"], "M": ["M"], "L": ["L"], "R": ["R32", "R16"]}
"""Names of workloads by the letters that `run.py --workloads` takes."""


def list_names(letters: list[str]) -> list[str]:
    """Return the names of the workloads; if the real model cannot be had, R is left out."""
    if "R" in letters:
        try:
            ensure_real_model()
        except ConfigurationError as error:
            print(f"R is left out: {error}\n")
            letters = [letter for letter in letters if letter != "R"]
    return [name for letter in letters for name in CHOICES[letter]]


def prompt(index: int, vocabulary_size: int, num_tokens: int = NUM_PROMPT_TOKENS) -> list[int]:
    """Return the prompt of one stream, the same for both sides."""
    rng = random.Random(index)
    return [rng.randrange(1, vocabulary_size) for _ in range(num_tokens)]


def find_directory(workload: Workload, num_positions: int = 8_192) -> Path:
    """Return the directory of the workload's model, which is made once, or is the real one."""
    if workload.is_real:
        return ensure_real_model()
    directory = BUILD / f"model-{workload.name}-{num_positions}"
    if not (directory / "model.safetensors").exists():
        _save(workload, num_positions, directory)
    return directory


def make_whole_tokenizer(workload: Workload) -> Path:
    """Return a directory with the model's tokenizer, which has a text for each row of the model.

    A recorder's server takes no model with far more rows than its tokenizer has tokens.
    """
    source = find_directory(workload)
    if workload.is_real:
        return source
    directory = BUILD / f"tokenizer-{workload.name}"
    directory.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*token*.json"):
        content = json.loads(path.read_text())
        if path.name == "tokenizer.json":
            tokens = content["model"]["vocab"]
            for number in range(len(tokens), workload.vocabulary_size):
                tokens[f"word{number}"] = number
        (directory / path.name).write_text(json.dumps(content))
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
