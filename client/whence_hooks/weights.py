"""Digest of a model's tensors in memory, as served and recorded models have it.

The server computes it with these functions too, so that equal tensors have equal digests.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping

import torch


def digest_weights(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over the tensors in memory, after any cast.

    Tensors are sorted by name. For each, the hash covers its name, its dtype ("float32") and its
    shape as comma-joined decimal numbers, each UTF-8 and NUL-terminated; then its elements in
    row-major order, little-endian. Of tied tensors (one storage under several names, such as an
    output head that is the embedding) only the first name counts.
    """
    digest = hashlib.sha256()
    for name, tensor in list_distinct(state):
        digest.update(make_heading(name, tensor))
        digest.update(convert_to_little_endian(tensor))
    return digest.hexdigest()


def list_distinct(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors sorted by name; of tied tensors only the first."""
    seen: set[tuple[object, ...]] = set()
    for name in sorted(state):
        tensor = state[name].detach()
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        yield name, tensor


def make_heading(name: str, tensor: torch.Tensor) -> bytes:
    """Return the bytes before a tensor's elements in the weights digest."""
    shape = ",".join(str(size) for size in tensor.shape)
    return f"{name}\0{name_dtype(tensor)}\0{shape}\0".encode()


def name_dtype(tensor: torch.Tensor) -> str:
    """Return torch's name of a tensor's type, e.g. "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def convert_to_little_endian(tensor: torch.Tensor) -> memoryview:
    """Return the elements' bytes, row-major; no copy for a contiguous tensor on the CPU."""
    elements = tensor.cpu().contiguous().reshape(-1)
    octets = elements.view(torch.uint8)
    if sys.byteorder == "big":
        octets = octets.reshape(-1, elements.element_size()).flip(1).contiguous().reshape(-1)
    return octets.numpy().data
