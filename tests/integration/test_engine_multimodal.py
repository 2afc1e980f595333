"""Models for text and images, served for text: the tokens are those of `generate`."""

from pathlib import Path

import pytest
from engine_harness import Harness, greedy, loaded_model, prompt_of, reference_greedy
from tiny_multimodal import MULTIMODAL, save_tiny_multimodal
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

PROMPTS = [prompt_of(40, 1), prompt_of(7, 2)]
"""Longer than a prefill chunk and a window; and shorter."""


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_multimodal_model_generates_the_text_of_generate(name: str, tmp_path: Path) -> None:
    directory = save_tiny_multimodal(tmp_path, name)
    loaded = loaded_model(directory)
    assert loaded.info.batched
    harness = Harness(loaded, chunk=16)
    for i, prompt in enumerate(PROMPTS):
        harness.admit(str(i), prompt, greedy(20, ignore_eos=True))
    harness.run()
    known = type(MULTIMODAL[name]) in MODEL_FOR_CAUSAL_LM_MAPPING
    auto = AutoModelForCausalLM if known else AutoModelForImageTextToText
    reference = auto.from_pretrained(directory).eval()
    for i, prompt in enumerate(PROMPTS):
        expected = reference_greedy(reference, prompt, max_new_tokens=20, eos_token_id=None)
        assert harness.ids(str(i)) == expected
