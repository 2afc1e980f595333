"""Digests that identify a model exactly: of its files, and of its tensors in memory."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

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


def digest_weights(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over the tensors in memory, after any cast.

    Tensors are sorted by name. For each, the hash covers its name, its dtype ("float32") and its
    shape as comma-joined decimal numbers, each UTF-8 and NUL-terminated; then its elements in
    row-major order, little-endian. Of tied tensors (one storage under several names, such as an
    output head that is the embedding) only the first name counts.
    """
    digest = hashlib.sha256()
    for name, tensor in _list_distinct(state):
        digest.update(_make_heading(name, tensor))
        digest.update(_convert_to_little_endian(tensor))
    return digest.hexdigest()


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
        _make_tensor_digest(name, tensor, hashlib.sha256(_convert_to_little_endian(tensor)))
        for name, tensor in _list_distinct(state)
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
    for name, tensor in _list_distinct(state):
        octets = _convert_to_little_endian(tensor)
        whole.update(_make_heading(name, tensor))
        whole.update(octets)
        records.append(_make_tensor_digest(name, tensor, hashlib.sha256(octets)))
    return StateDigests(whole.hexdigest(), records)


def _make_heading(name: str, tensor: torch.Tensor) -> bytes:
    """Return the bytes before a tensor's elements in the weights digest."""
    shape = ",".join(str(size) for size in tensor.shape)
    return f"{name}\0{_name_dtype(tensor)}\0{shape}\0".encode()


def _make_tensor_digest(name: str, tensor: torch.Tensor, elements: "hashlib._Hash") -> TensorDigest:
    return TensorDigest(name, _name_dtype(tensor), tuple(tensor.shape), elements.hexdigest())


def _list_distinct(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors sorted by name; of tied tensors only the first."""
    seen: set[tuple[object, ...]] = set()
    for name in sorted(state):
        tensor = state[name].detach()
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        yield name, tensor


def _name_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _convert_to_little_endian(tensor: torch.Tensor) -> memoryview:
    """Return the elements' bytes, row-major; no copy for a contiguous tensor on the CPU."""
    elements = tensor.cpu().contiguous().reshape(-1)
    octets = elements.view(torch.uint8)
    if sys.byteorder == "big":
        octets = octets.reshape(-1, elements.element_size()).flip(1).contiguous().reshape(-1)
    return octets.numpy().data
