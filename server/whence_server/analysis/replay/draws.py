"""Noise of a draw, from seed, sequence, index and token."""

import math

import torch

from whence_server.domain.steps import Step
from whence_server.engines.transformers.decoding.torch_kernels import compute_philox_4x32


def compute_noise(seed: int, step: Step) -> float:
    """Return the noise of a step's token; see `Draw` in step.proto."""
    word = [
        torch.tensor([value], dtype=torch.int64)
        for value in (step.decision.token_id, step.index, step.sequence_index, 0)
    ]
    low, high = torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32])
    first, *_ = compute_philox_4x32((word[0], word[1], word[2], word[3]), (low, high))
    return -math.log((int(first) + 0.5) * 2.0**-32)
