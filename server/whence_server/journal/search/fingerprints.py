"""Fingerprints of a text's passages, by which texts with a common passage are found.

A fingerprint is a hash of `GRAM_CHARACTERS` consecutive characters. Of each `WINDOW` consecutive
ones the smallest is kept, so that two texts with `LEAST_CHARACTERS` consecutive characters in
common have a fingerprint in common, and a text has one for each seven characters (Schleimer,
Wilkerson and Aiken, "Winnowing: local algorithms for document fingerprinting", SIGMOD 2003).
"""

from typing import Any

import numpy as np

GRAM_CHARACTERS = 8
WINDOW = 13
LEAST_CHARACTERS = GRAM_CHARACTERS + WINDOW - 1
"""Length of a common passage that is found without fail, in characters of `normalise`."""
# Odd constants of 64 bits: a polynomial hash, whose bits murmur's finaliser mixes.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_HALF = np.uint64(32)


def normalise(text: str) -> str:
    """Return a text as it is compared: without case, and with single spaces between words."""
    return " ".join(text.casefold().split())


def make_fingerprints(text: str) -> list[int]:
    """Return the fingerprints of a normalised text: different signed numbers of 32 bits."""
    points: Any = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    num_grams = len(points) - GRAM_CHARACTERS + 1
    if num_grams < 1:
        return []
    points = points.astype(np.uint64)
    hashes: Any = np.zeros(num_grams, np.uint64)
    for place in range(GRAM_CHARACTERS):
        hashes = hashes * _BASE + points[place : place + num_grams]
    hashes ^= hashes >> _HALF
    hashes *= _MIX
    grams = (hashes >> _HALF).astype(np.uint32)
    if num_grams > WINDOW:
        windows = np.lib.stride_tricks.sliding_window_view(grams, WINDOW)
        kept = windows.min(axis=1)
    else:
        kept = grams.min(keepdims=True)
    found: list[int] = np.unique(kept).astype(np.uint32).view(np.int32).tolist()
    return found
