"""What a run reads: its documents and examples, each looked up in the record when asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from whence.v1.training_pb2 import TrainingDataset, TrainingDocument
from whence_server.domain.errors import DocumentNotFoundError, LineageError
from whence_server.lineage.corpus import DocumentIndex, ExampleIndex
from whence_server.lineage.lookup import event_at, events_at
from whence_server.lineage.merkle import MerkleTree


class Piece(NamedTuple):
    """What an example has of one document: the bytes [begin_byte, end_byte) from its beginning."""

    document_index: int
    begin_byte: int
    end_byte: int


class TrainingSet:
    """The training set as a record tells it.

    Args:
        path: the record's file.

    Attributes:
        dataset: as a whole; None where that is not on record yet.
        documents: filled as the record is read.
        examples: the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dataset: TrainingDataset | None = None
        self.documents = DocumentIndex()
        self.examples = ExampleIndex()
        self._tree: MerkleTree | None = None

    def document(self, index: int) -> TrainingDocument:
        """A document by its index.

        Raises:
            DocumentNotFoundError: there is none.
            LineageError: the record is not the one that was read before.
        """
        self._require(index)
        chunk = event_at(self._path, self.documents.chunks.place_of(index)).documents
        return chunk.documents[index - chunk.first_index]

    def all_documents(self) -> Iterator[TrainingDocument]:
        """Every document, by its index.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        index = 0
        for event in events_at(self._path, self.documents.chunks.places()):
            chunk = event.documents
            # An entry may begin with what was known before it.
            yield from chunk.documents[index - chunk.first_index :]
            index = chunk.first_index + len(chunk.documents)

    def find(self, sha256: str) -> int:
        """Index of the first document with a digest, given as 64 hex digits.

        Raises:
            DocumentNotFoundError: there is none.
        """
        index = self.documents.find(bytes.fromhex(sha256))
        if index is None:
            self._require(0)
            raise DocumentNotFoundError(f"no document of the training set has the SHA-256 {sha256}")
        return index

    def pieces(self, example_id: int) -> list[Piece]:
        """What an example was cut from, in order.

        Raises:
            DocumentNotFoundError: that is not on record.
            LineageError: the record is not the one that was read before.
        """
        if example_id >= len(self.examples):
            raise DocumentNotFoundError(
                f"what example {example_id} was cut from is not on record: there are "
                f"{len(self.examples)} examples of which it is"
            )
        chunk = event_at(self._path, self.examples.chunks.place_of(example_id)).examples
        which = example_id - chunk.first_example_id
        if chunk.num_pieces[which] == 0:
            raise DocumentNotFoundError(f"example {example_id} was cut from no document")
        begin = sum(chunk.num_pieces[:which])
        return [
            Piece(chunk.document_indices[i], chunk.begin_bytes[i], chunk.end_bytes[i])
            for i in range(begin, begin + chunk.num_pieces[which])
        ]

    def audit_path(self, index: int) -> list[bytes]:
        """The siblings from a document's leaf up to the Merkle root.

        Raises:
            DocumentNotFoundError: there is no such document.
            LineageError: the documents on record do not have the recorded root.
        """
        self._require(index)
        return self._checked_tree().audit_path(index)

    def require_merkle_root(self) -> None:
        """Hold the documents to the Merkle root, where one is on record.

        Raises:
            LineageError: the documents on record do not have the recorded root.
        """
        if self.dataset is not None and self.dataset.merkle_root:
            self._checked_tree()

    def _checked_tree(self) -> MerkleTree:
        if self._tree is None or len(self._tree) != len(self.documents):
            digests = (self.documents.digest(i) for i in range(len(self.documents)))
            self._tree = MerkleTree(digests)
        recorded = "" if self.dataset is None else self.dataset.merkle_root
        if self._tree.root.hex() != recorded:
            raise LineageError(
                f"{self._path}: its {len(self.documents)} documents have the Merkle root "
                f"{self._tree.root.hex()}, and {recorded or 'none'} is recorded"
            )
        return self._tree

    def _require(self, index: int) -> None:
        if index < len(self.documents):
            return
        if len(self.documents):
            raise DocumentNotFoundError(
                f"there is no document {index}: the training set has {len(self.documents)}"
            )
        kind = (
            "" if self.dataset is None else f": its training set is of kind {self.dataset.kind!r}"
        )
        raise DocumentNotFoundError(f"this run has no documents on record{kind}")
