"""Adapters of tiny models, one of each PEFT type, saved to disk as PEFT does it."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

LAYERS = ["q_proj", "v_proj"]
TASK = "CAUSAL_LM"


def lora(**settings: Any) -> peft.PeftConfig:
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": LAYERS, **settings}
    return peft.LoraConfig(task_type=TASK, **chosen)


KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lora,
    "lora of all linear layers": lambda: lora(target_modules="all-linear", use_rslora=True),
    "lora of the head": lambda: lora(target_modules=["lm_head", "o_proj"]),
    "lora with biases": lambda: lora(bias="lora_only", lora_bias=True),
    "dora": lambda: lora(use_dora=True),
    "modules_to_save": lambda: lora(modules_to_save=["lm_head", "embed_tokens"]),
    "trainable tokens in lora": lambda: lora(trainable_token_indices=[3, 7, 11]),
    "adalora": lambda: peft.AdaLoraConfig(
        task_type=TASK, target_modules=LAYERS, total_step=10, init_r=4, target_r=2
    ),
    "ia3": lambda: peft.IA3Config(
        task_type=TASK, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": lambda: peft.LoHaConfig(task_type=TASK, target_modules=LAYERS, r=4),
    "lokr": lambda: peft.LoKrConfig(task_type=TASK, target_modules=LAYERS, r=4),
    "oft": lambda: peft.OFTConfig(task_type=TASK, target_modules=LAYERS, oft_block_size=4),
    "vera": lambda: peft.VeraConfig(task_type=TASK, target_modules=["q_proj"], r=4),
    "ln_tuning": lambda: peft.LNTuningConfig(task_type=TASK, target_modules=["input_layernorm"]),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        task_type=TASK, token_indices=[3, 7], target_modules=["embed_tokens"]
    ),
}


def generate_by_peft(
    base: Path, adapter: Path | None, prompt: list[int], num_tokens: int = 12, **settings: Any
) -> list[list[int]]:
    """Return the tokens of PEFT's own `generate`, or of transformers' without an adapter."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        with warnings.catch_warnings(action="ignore"):
            model = peft.PeftModel.from_pretrained(model, adapter)
    chosen: dict[str, Any] = {"do_sample": False, "eos_token_id": None, **settings}
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_tokens,
        pad_token_id=0,
        **chosen,
    )
    return list(output[:, len(prompt) :].tolist())


def save_merged(base: Path, adapter: Path, directory: Path) -> Path:
    """Write the model that PEFT makes by merging an adapter into its base."""
    shutil.copytree(base, directory)
    with warnings.catch_warnings(action="ignore"):
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        merged: Any = model.merge_and_unload()
        merged.save_pretrained(directory)
    return directory


def save_adapter(base: Path, directory: Path, config: peft.PeftConfig, **settings: Any) -> Path:
    """Write an adapter that changes the output of its base, as a training does."""
    torch.manual_seed(5)
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.is_floating_point():
                    parameter.add_(torch.randn(parameter.shape) * 0.3)
        model.save_pretrained(directory, **settings)
    return directory
