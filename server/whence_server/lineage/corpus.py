"""In-memory index of a record's documents and examples; 32 bytes for each document."""

from array import array
from bisect import bisect_right

from whence.v1.training_pb2 import TrainingDocuments, TrainingExamples
from whence_server.domain.errors import LineageError
from whence_server.lineage.lookup import Place

DIGEST_BYTES = 32


class Chunks:
    """Positions in the record of the entries that hold consecutive items, some thousand each."""

    def __init__(self) -> None:
        self.num_items = 0
        self._firsts = array("Q")
        self._begins = array("Q")
        self._ends = array("Q")
        self._checks = array("Q")

    def add(self, first: int, num_items: int, place: Place) -> int:
        """Add an entry, and return the number of its items that were in the index already.

        Raises:
            LineageError: items are missing between the indexed ones and this entry's first.
        """
        if first > self.num_items:
            raise LineageError(
                f"item {first} of the training set is recorded after "
                f"{self.num_items} items; the items in between are missing"
            )
        num_known = min(self.num_items - first, num_items)
        if num_known < num_items:
            self._firsts.append(self.num_items)
            self._begins.append(place.begin_byte)
            self._ends.append(place.end_byte)
            self._checks.append(place.check)
            self.num_items = first + num_items
        return num_known

    def list_places(self) -> list[Place]:
        """Return the place of every entry, in order."""
        return list(map(Place, self._begins, self._ends, self._checks))

    def find_place(self, index: int) -> Place:
        """Return the place of the entry that holds the item with this index."""
        which = bisect_right(self._firsts, index) - 1
        return Place(self._begins[which], self._ends[which], self._checks[which])


class DocumentIndex:
    """SHA-256 digests of the documents, by index, and the places of their entries."""

    def __init__(self) -> None:
        self.chunks = Chunks()
        self._digests = bytearray()

    def __len__(self) -> int:
        return self.chunks.num_items

    def add(self, documents: TrainingDocuments, place: Place) -> None:
        """Add an entry of documents.

        Raises:
            LineageError: documents are missing before it, or a digest is malformed.
        """
        digests = [bytes.fromhex(document.sha256) for document in documents.documents]
        if any(len(digest) != DIGEST_BYTES for digest in digests):
            raise LineageError("a document's SHA-256 on record does not have 64 hex digits")
        num_known = self.chunks.add(documents.first_index, len(digests), place)
        self._digests += b"".join(digests[num_known:])

    def get_digest(self, index: int) -> bytes:
        """Return a document's SHA-256, 32 bytes."""
        return bytes(self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def find(self, digest: bytes) -> int | None:
        """Return the index of the first document with this SHA-256; None if there is none."""
        begin = self._digests.find(digest)
        # A match may begin within one digest and end in the next.
        while begin % DIGEST_BYTES and begin >= 0:
            begin = self._digests.find(digest, begin + 1)
        return None if begin < 0 else begin // DIGEST_BYTES


class ExampleIndex:
    """Places of the entries that map examples to the pieces of documents they contain."""

    def __init__(self) -> None:
        self.chunks = Chunks()

    def __len__(self) -> int:
        return self.chunks.num_items

    def add(self, examples: TrainingExamples, place: Place) -> None:
        """Add an entry of examples.

        Raises:
            LineageError: examples are missing before it.
        """
        self.chunks.add(examples.first_example_id, len(examples.num_pieces), place)
