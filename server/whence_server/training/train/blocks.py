"""Cutting of texts into training examples with known pieces of documents.

All documents form one sequence of tokens, with an end-of-text token after each document. The
sequence is cut into consecutive blocks of equal size; tokens at the end that do not fill a block
are not trained on.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.texts import TextDocument, decode_text
from whence_server.training.recording.documented import Document, DocumentedExamples, Piece

Integers = npt.NDArray[np.int64]


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Dataset of examples for a causal language model; the labels are the inputs.

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


class BlockDataset(NamedTuple):
    """Training set with the documents of its examples."""

    blocks: Blocks
    documented: DocumentedExamples
    num_tokens_left: int
    """Number of tokens at the end that are in no block."""


def cut_into_blocks(
    documents: Sequence[TextDocument], tokenizer: Any, block_size: int
) -> BlockDataset:
    """Tokenize documents, and cut the tokens into blocks.

    Text that looks like a special token is encoded as ordinary text.

    Consecutive pieces of a document leave no gap. If the bytes of a character are in two blocks,
    both pieces include the whole character.

    Raises:
        ConfigurationError: the texts do not fill one block.
    """
    streams = [_tokenize(document, tokenizer) for document in documents]
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
        pieces=_find_pieces(streams, num_blocks, block_size),
        block_size=block_size,
        num_tokens=len(ids),
        description=f"blocks of {block_size} tokens, an end-of-text after each document",
    )
    return BlockDataset(Blocks(kept), documented, len(ids) - num_blocks * block_size)


class _Tokens(NamedTuple):
    """Tokens of a document with its end-of-text, and the byte range of each."""

    ids: Integers
    begins: Integers
    ends: Integers


def _tokenize(document: TextDocument, tokenizer: Any) -> _Tokens:
    text, offsets = decode_text(document.data)
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        encoding = backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = before
    characters = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, stops = offsets[characters[:, 0]], offsets[characters[:, 1]]
    # A tokenizer may leave blanks out of its offsets: they belong to the next token.
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


def _find_pieces(streams: Sequence[_Tokens], num_blocks: int, block_size: int) -> list[list[Piece]]:
    pieces: list[list[Piece]] = [[] for _ in range(num_blocks)]
    firsts = np.cumsum([0] + [len(stream.ids) for stream in streams]).tolist()
    for document, (first, end) in enumerate(pairwise(firsts)):
        stream = streams[document]
        for block in range(first // block_size, min((end - 1) // block_size + 1, num_blocks)):
            low = max(first, block * block_size) - first
            high = min(end, (block + 1) * block_size) - first
            piece = Piece(document, int(stream.begins[low]), int(stream.ends[high - 1]))
            # A block with a document's end-of-text only has no text of the document.
            if piece.end_byte > piece.begin_byte or block_size == 1:
                pieces[block].append(piece)
    return pieces
