"""Numbers of a trace, computed for the whole batch on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from whence_server.engines.transformers.decoding.kernels import Kernels


class TopCandidates(NamedTuple):
    """The model's most likely tokens.

    Attributes:
        token_ids: int64 [B, n].
        logprobs: float32 [B, n].
    """

    token_ids: torch.Tensor
    logprobs: torch.Tensor


def gather_logprobs(logprobs: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the logprob of one token in each row of [B, V]: [B]."""
    return logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def compute_ranks(scores: torch.Tensor, token_ids: torch.Tensor, kernels: Kernels) -> torch.Tensor:
    """Return the number of tokens in each row more likely than the given one: int64 [B].

    Scores are compared and not logprobs, whose rounding makes ties.
    """
    return kernels.count_above(scores, gather_logprobs(scores, token_ids))


def find_top_candidates(
    scores: torch.Tensor, logprobs: torch.Tensor, num_candidates: int, kernels: Kernels
) -> TopCandidates:
    """Return the most likely tokens, most likely first, lower ids first among equals."""
    token_ids = kernels.find_top_candidates(scores, num_candidates)
    return TopCandidates(token_ids, logprobs.gather(-1, token_ids))


def pad_ids(ids: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Lay out lists of token ids: int64 [rows, longest], filled up with 0."""
    padded = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
    for row, listed in enumerate(ids):
        padded[row, : len(listed)] = listed
    return torch.from_numpy(padded).to(device)


def copy_to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors of any types and shapes to the CPU in one transfer."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    return unpack(pack(tensors).cpu(), tensors)


def pack(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the tensors' bytes: uint8."""
    return torch.cat(
        [tensors[i].contiguous().flatten().view(torch.uint8) for i in _sort_by_alignment(tensors)]
    )


def unpack(packed: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Split the result of `pack` into tensors with the types and shapes of `like`."""
    found: list[torch.Tensor] = list(like)
    begin = 0
    for i in _sort_by_alignment(like):
        end = begin + like[i].numel() * like[i].element_size()
        found[i] = packed[begin:end].view(like[i].dtype).view(like[i].shape)
        begin = end
    return found


def _sort_by_alignment(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return an order in which each tensor begins at a multiple of its element size."""
    return sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
