"""Recomputation of random draws, by the description in `proto/whence/v1/step.proto`."""

import math
from typing import Protocol


class Place(Protocol):
    """A step of a sequence: as the contract's message has it, or the client's token."""

    @property
    def index(self) -> int: ...
    @property
    def sequence_index(self) -> int: ...


def compute_philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> int:
    """Compute the first word of Philox4x32-10 (Salmon et al. 2011), from the paper."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k0, b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c[0]


def compute_noise(seed: int, step: Place, token_id: int) -> float:
    """Return -log(u) of a token at a step."""
    counter = (token_id, step.index, step.sequence_index, 0)
    word = compute_philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return -math.log((word + 0.5) / 2**32)
