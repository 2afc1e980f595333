"""Tiny models for text and images, with random weights, saved to disk as real ones are."""

from pathlib import Path

import torch
from tiny_models import PADDED_VOCABULARY, SHAPE, byte_level_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2VLConfig,
    SmolVLMConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

TEXT = {**SHAPE, "num_key_value_heads": 2}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
QWEN_VISION = {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 1}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
MULTIMODAL: dict[str, PreTrainedConfig] = {
    # transformers loads it for text under its own name; a window in every other layer.
    "gemma3_images": Gemma3Config(
        text_config={**TEXT, "head_dim": 12, "sliding_window": 16},
        vision_config=VISION,
        image_token_index=410,
        boi_token_index=411,
        eoi_token_index=412,
        mm_tokens_per_image=4,
    ),
    "llava": LlavaConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=410,
    ),
    # Three positions for each token: time, height and width.
    "qwen2_vl": Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config=QWEN_VISION,
        image_token_id=410,
        video_token_id=411,
        vision_start_token_id=412,
        vision_end_token_id=413,
    ),
    "smolvlm": SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=VISION, image_token_id=410, scale_factor=2
    ),
}


def save_tiny_multimodal(directory: Path, name: str) -> Path:
    """Write a model for text and images, and a tokenizer, with `save_pretrained`."""
    config = MULTIMODAL[name]
    text = config.get_text_config(decoder=True)
    assert text.vocab_size == PADDED_VOCABULARY
    for each in (config, text):
        each.bos_token_id = each.eos_token_id = 0
        each.pad_token_id = None
    torch.manual_seed(0)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    auto = AutoModelForCausalLM if known else AutoModelForImageTextToText
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    return directory
