"""The batch's masks, compared with those that transformers builds for every step."""

import random

import pytest
import torch
from transformers import DynamicCache, MistralConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from whence_server.engines.transformers.masks import SPARE_COLUMNS, StepMasks

WINDOW = 6
CONFIG = MistralConfig(
    hidden_size=8, num_attention_heads=1, num_hidden_layers=1, sliding_window=WINDOW
)
CONFIG._attn_implementation = "eager"


def theirs(padding: list[int], width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return transformers' full and sliding masks of a step that sees `width` columns."""
    rows = len(padding)
    cache = DynamicCache()
    cache.update(torch.zeros(rows, 1, width - 1, 8), torch.zeros(rows, 1, width - 1, 8), 0)
    visible = torch.arange(width) >= torch.tensor(padding).unsqueeze(1)
    arguments = {
        "config": CONFIG,
        "inputs_embeds": torch.zeros(rows, 1, 8, dtype=dtype),
        "attention_mask": visible.long(),
        "past_key_values": cache,
        "position_ids": torch.tensor([[width - 1 - p] for p in padding]),
    }
    return [create_causal_mask(**arguments), create_sliding_window_causal_mask(**arguments)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 5, 6, 7, 30])
def test_masks_are_those_of_transformers_step_after_step(width: int, dtype: torch.dtype) -> None:
    choose = random.Random(width)
    padding = [0, *(choose.randrange(width) for _ in range(3))]
    masks = StepMasks(padding, width, [None, WINDOW], dtype, torch.device("cpu"))
    for step in range(20):
        for ours, expected in zip(
            masks.select(width + step), theirs(padding, width + step, dtype), strict=True
        ):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_steps_may_be_skipped_within_capacity() -> None:
    masks = StepMasks([0], 3, [WINDOW], torch.float32, torch.device("cpu"))
    assert masks.num_columns == 3 + SPARE_COLUMNS
    (mask,) = masks.select(20)
    assert (mask[0, 0, 0] == 0).tolist() == [False] * 14 + [True] * 6
