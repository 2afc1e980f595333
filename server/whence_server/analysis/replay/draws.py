"""Noise of a draw, from seed, sequence, index and token."""

import math

import torch

from whence_server.domain.steps import Step
from whence_server.engines.transformers.decoding.torch_kernels import compute_philox_4x32


def compute_noise(seed: int, step: Step, first_sequence: int = 0) -> float:
    """Return the noise of a step's token; see `Draw` in step.proto.

    Args:
        seed: the seed.
        step: the step.
        first_sequence: index of the generation's first sequence in the draws.
    """
    sequence = first_sequence + step.sequence_index
    word = [
        torch.tensor([value], dtype=torch.int64)
        for value in (step.decision.token_id, step.index, sequence, 0)
    ]
    low, high = torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32])
    first, *_ = compute_philox_4x32((word[0], word[1], word[2], word[3]), (low, high))
    return -math.log((int(first) + 0.5) * 2.0**-32)
