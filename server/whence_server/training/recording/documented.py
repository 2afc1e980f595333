"""Datasets whose examples are mapped to bytes of documents, and their record entries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whence.v1.training_pb2 import (
    TrainingDataset,
    TrainingDocument,
    TrainingDocuments,
    TrainingEvent,
    TrainingExamples,
)
from whence_server.domain.paths import format_path, get_undecodable_bytes
from whence_server.lineage.merkle import MerkleTree
from whence_server.lineage.training_set import Piece

__all__ = ["Document", "DocumentedExamples", "Piece"]

_PER_EVENT = 4096


class Document(NamedTuple):
    """A document of a dataset; see `TrainingDocument` in training.proto."""

    source: str
    """Absolute path of the file."""
    begin_byte: int
    end_byte: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentedExamples:
    """Dataset with the pieces of documents that each example contains."""

    documents: Sequence[Document]
    pieces: Sequence[Sequence[Piece]]
    """Pieces of each example, in the order of the dataset."""
    block_size: int = 0
    """Number of tokens of each example; 0 if it varies."""
    num_tokens: int = 0
    """Number of tokens of all documents; 0 if it is not known."""
    description: str = ""

    def compute_merkle_root(self) -> str:
        """Return the root of the RFC 9162 tree over the documents, in hex."""
        return MerkleTree(bytes.fromhex(d.sha256) for d in self.documents).root.hex()

    def make_dataset(self) -> TrainingDataset:
        """Return the record's description of the whole dataset."""
        return TrainingDataset(
            kind="documents",
            num_documents=len(self.documents),
            num_examples=len(self.pieces),
            merkle_root=self.compute_merkle_root(),
            block_size=self.block_size,
            description=self.description,
            num_tokens=self.num_tokens,
        )

    def make_events(self) -> Iterator[TrainingEvent]:
        """Yield the record's entries: the dataset, then its documents, then its examples."""
        yield TrainingEvent(dataset=self.make_dataset())
        for first in range(0, len(self.documents), _PER_EVENT):
            some = self.documents[first : first + _PER_EVENT]
            documents = [
                TrainingDocument(
                    source=format_path(document.source),
                    begin_byte=document.begin_byte,
                    end_byte=document.end_byte,
                    sha256=document.sha256,
                    source_bytes=get_undecodable_bytes(document.source),
                )
                for document in some
            ]
            yield TrainingEvent(documents=TrainingDocuments(first_index=first, documents=documents))
        for first in range(0, len(self.pieces), _PER_EVENT):
            examples = self.pieces[first : first + _PER_EVENT]
            pieces = [piece for example in examples for piece in example]
            yield TrainingEvent(
                examples=TrainingExamples(
                    first_example_id=first,
                    num_pieces=[len(example) for example in examples],
                    document_indices=[piece.document_index for piece in pieces],
                    begin_bytes=[piece.begin_byte for piece in pieces],
                    end_bytes=[piece.end_byte for piece in pieces],
                )
            )
