"""Documents and examples of a training run, read from the record on demand."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from whence.v1.training_pb2 import TrainingDataset, TrainingDocument
from whence_server.domain.errors import DocumentNotFoundError, LineageError
from whence_server.lineage.corpus import DocumentIndex, ExampleIndex
from whence_server.lineage.lookup import read_event_at, read_events_at
from whence_server.lineage.merkle import MerkleTree


class Piece(NamedTuple):
    """Part of a document in an example: its bytes [begin_byte, end_byte)."""

    document_index: int
    begin_byte: int
    end_byte: int


class TrainingSet:
    """Training set of a run, as recorded.

    Args:
        path: the record's file.

    Attributes:
        dataset: description of the whole dataset; None if it is not on record yet.
        documents: index of the documents, filled while the record is read.
        examples: index of the examples, filled while the record is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dataset: TrainingDataset | None = None
        self.documents = DocumentIndex()
        self.examples = ExampleIndex()
        self._tree: MerkleTree | None = None

    def read_document(self, index: int) -> TrainingDocument:
        """Read a document's entry by its index.

        Raises:
            DocumentNotFoundError: there is none.
            LineageError: the record is not the one that was read before.
        """
        self._require_document(index)
        chunk = read_event_at(self._path, self.documents.chunks.find_place(index)).documents
        return chunk.documents[index - chunk.first_index]

    def read_documents(self) -> Iterator[TrainingDocument]:
        """Yield every document's entry, by ascending index.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        index = 0
        for event in read_events_at(self._path, self.documents.chunks.list_places()):
            chunk = event.documents
            # An entry may repeat documents of the entry before it.
            yield from chunk.documents[index - chunk.first_index :]
            index = chunk.first_index + len(chunk.documents)

    def find_document(self, sha256: str) -> int:
        """Return the index of the first document with this SHA-256, given as 64 hex digits.

        Raises:
            DocumentNotFoundError: there is none.
        """
        index = self.documents.find(bytes.fromhex(sha256))
        if index is None:
            self._require_document(0)
            raise DocumentNotFoundError(f"no document of the training set has the SHA-256 {sha256}")
        return index

    def read_pieces(self, example_id: int) -> list[Piece]:
        """Read the pieces of documents that an example contains, in order.

        Raises:
            DocumentNotFoundError: the example's pieces are not on record.
            LineageError: the record is not the one that was read before.
        """
        if example_id >= len(self.examples):
            raise DocumentNotFoundError(
                f"the documents of example {example_id} are not on record: they are recorded for "
                f"the first {len(self.examples)} examples"
            )
        chunk = read_event_at(self._path, self.examples.chunks.find_place(example_id)).examples
        which = example_id - chunk.first_example_id
        if chunk.num_pieces[which] == 0:
            raise DocumentNotFoundError(f"example {example_id} contains no piece of a document")
        begin = sum(chunk.num_pieces[:which])
        return [
            Piece(chunk.document_indices[i], chunk.begin_bytes[i], chunk.end_bytes[i])
            for i in range(begin, begin + chunk.num_pieces[which])
        ]

    def compute_audit_path(self, index: int) -> list[bytes]:
        """Return the hashes of the siblings from a document's leaf up to the Merkle root.

        Raises:
            DocumentNotFoundError: there is no such document.
            LineageError: the documents on record do not have the recorded root.
        """
        self._require_document(index)
        return self._require_recorded_root().compute_audit_path(index)

    def require_merkle_root(self) -> None:
        """Check the documents against the Merkle root, if one is on record.

        Raises:
            LineageError: the documents on record do not have the recorded root.
        """
        if self.dataset is not None and self.dataset.merkle_root:
            self._require_recorded_root()

    def _require_recorded_root(self) -> MerkleTree:
        if self._tree is None or len(self._tree) != len(self.documents):
            digests = (self.documents.get_digest(i) for i in range(len(self.documents)))
            self._tree = MerkleTree(digests)
        recorded = "" if self.dataset is None else self.dataset.merkle_root
        if self._tree.root.hex() != recorded:
            raise LineageError(
                f"{self._path}: its {len(self.documents)} documents have the Merkle root "
                f"{self._tree.root.hex()}, and {recorded or 'none'} is on record"
            )
        return self._tree

    def _require_document(self, index: int) -> None:
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
