"""Cuts texts into training examples, and says which bytes of which document each one holds.

All documents together are one sequence of tokens, an end-of-text token after each. It is cut
into consecutive blocks of one size; what is left at the end and fills no block is not trained on.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.texts import TextDocument, decoded
from whence_server.training.recording.documented import Document, DocumentedExamples, Piece

Integers = npt.NDArray[np.int64]


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Examples for a causal language model: the labels are the inputs.

    Args:
        token_ids: shape (num_blocks, block_size).
    """

    def __init__(self, token_ids: torch.Tensor) -> None:
        self._token_ids = token_ids

    def __len__(self) -> int:
        return len(self._token_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self._token_ids[index]
        return {"input_ids": ids, "labels": ids}


class Cut(NamedTuple):
    """A training set, and where it comes from."""

    blocks: Blocks
    documented: DocumentedExamples
    num_tokens_left: int
    """At the end, in no block."""


def cut(documents: Sequence[TextDocument], tokenizer: Any, block_size: int) -> Cut:
    """Make the blocks.

    Text that looks like a special token is text: it is encoded as any other.

    A block's piece of a document goes on where the one before it ended, so that nothing falls
    between; where a character's bytes lie in two blocks, both pieces hold the whole character.

    Raises:
        ConfigurationError: the texts do not fill one block.
    """
    streams = [_tokens_of(document, tokenizer) for document in documents]
    ids = np.concatenate([stream.ids for stream in streams])
    num_blocks = len(ids) // block_size
    if num_blocks == 0:
        raise ConfigurationError(
            f"--block-size {block_size}: the texts have {len(ids)} tokens, their ends included; "
            "a smaller block or more text is needed"
        )
    kept = torch.from_numpy(ids[: num_blocks * block_size]).view(num_blocks, block_size)
    documented = DocumentedExamples(
        documents=[Document(d.source, 0, len(d.data), d.sha256) for d in documents],
        pieces=_pieces(streams, num_blocks, block_size),
        block_size=block_size,
        num_tokens=len(ids),
        description=f"blocks of {block_size} tokens, an end-of-text after each document",
    )
    return Cut(Blocks(kept), documented, len(ids) - num_blocks * block_size)


class _Tokens(NamedTuple):
    """A document's tokens, its end-of-text included, and the bytes that each stands for."""

    ids: Integers
    begins: Integers
    ends: Integers


def _tokens_of(document: TextDocument, tokenizer: Any) -> _Tokens:
    text, offsets = decoded(document.data)
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        encoding = backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before
    characters = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, stops = offsets[characters[:, 0]], offsets[characters[:, 1]]
    # A tokenizer may leave blanks out of its offsets: they belong to what follows them.
    ends = np.maximum.accumulate(stops) if len(stops) else stops
    begins = np.minimum(np.concatenate([[0], ends[:-1]]), starts) if len(stops) else starts
    if len(ends):
        ends[-1] = len(document.data)
    end = [len(document.data)]
    return _Tokens(
        np.concatenate([np.array(encoding.ids, dtype=np.int64), [tokenizer.eos_token_id]]),
        np.concatenate([begins, end]),
        np.concatenate([ends, end]),
    )


def _pieces(streams: Sequence[_Tokens], num_blocks: int, block_size: int) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in range(num_blocks)]
    firsts = np.cumsum([0] + [len(stream.ids) for stream in streams]).tolist()
    for document, (first, end) in enumerate(pairwise(firsts)):
        stream = streams[document]
        for block in range(first // block_size, min((end - 1) // block_size + 1, num_blocks)):
            low = max(first, block * block_size) - first
            high = min(end, (block + 1) * block_size) - first
            piece = Piece(document, int(stream.begins[low]), int(stream.ends[high - 1]))
            # Of a document whose end-of-text alone falls into a block there is no text in it.
            if piece.end_byte > piece.begin_byte or block_size == 1:
                pieces[block].append(piece)
    return pieces
