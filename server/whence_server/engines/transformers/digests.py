"""Digests that identify a model exactly: of its files, and of its tensors in memory."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch

from whence_hooks.weights import (
    convert_to_little_endian,
    digest_weights,
    list_distinct,
    make_heading,
    name_dtype,
)
from whence_server.engines.file_digests import (
    digest_file,
    digest_files,
    digest_model_files,
    hash_file,
)

__all__ = [
    "StateDigests",
    "TensorDigest",
    "digest_file",
    "digest_files",
    "digest_model_files",
    "digest_state",
    "digest_tensors",
    "digest_weights",
    "hash_file",
]


class TensorDigest(NamedTuple):
    """Digest of one tensor; see `TensorDigest` in training.proto."""

    name: str
    dtype: str
    """torch's name of the type, e.g. "float32"."""
    shape: tuple[int, ...]
    sha256: str


def digest_tensors(state: Mapping[str, torch.Tensor]) -> list[TensorDigest]:
    """Return the SHA-256 of each tensor's elements, row-major and little-endian, sorted by name.

    Of tied tensors only the first is returned, as in `digest_weights`.
    """
    return [
        _make_tensor_digest(name, tensor, hashlib.sha256(convert_to_little_endian(tensor)))
        for name, tensor in list_distinct(state)
    ]


class StateDigests(NamedTuple):
    """Both kinds of digests of a model's tensors."""

    weights_digest: str
    """See `digest_weights`."""
    tensors: list[TensorDigest]
    """See `digest_tensors`."""


def digest_state(state: Mapping[str, torch.Tensor]) -> StateDigests:
    """Compute both kinds of digests in one pass, which copies each tensor to the CPU once."""
    whole, records = hashlib.sha256(), []
    for name, tensor in list_distinct(state):
        octets = convert_to_little_endian(tensor)
        whole.update(make_heading(name, tensor))
        whole.update(octets)
        records.append(_make_tensor_digest(name, tensor, hashlib.sha256(octets)))
    return StateDigests(whole.hexdigest(), records)


def _make_tensor_digest(name: str, tensor: torch.Tensor, elements: "hashlib._Hash") -> TensorDigest:
    return TensorDigest(name, name_dtype(tensor), tuple(tensor.shape), elements.hexdigest())
