"""Which documents and examples a record has, and where in it: 32 bytes a document."""

from array import array
from bisect import bisect_right

from whence.v1.training_pb2 import TrainingDocuments, TrainingExamples
from whence_server.domain.errors import LineageError
from whence_server.lineage.lookup import Place

DIGEST_BYTES = 32


class Chunks:
    """The entries that hold consecutive items, some thousand each."""

    def __init__(self) -> None:
        self.num_items = 0
        self._firsts = array("Q")
        self._begins = array("Q")
        self._ends = array("Q")
        self._checks = array("Q")

    def add(self, first: int, num_items: int, place: Place) -> int:
        """Take in an entry; tells how many of its items were known before.

        Raises:
            LineageError: items are missing between it and those before.
        """
        if first > self.num_items:
            raise LineageError(
                f"the record goes on with item {first} of the training set after "
                f"{self.num_items}; those in between are missing"
            )
        num_known = min(self.num_items - first, num_items)
        if num_known < num_items:
            self._firsts.append(self.num_items)
            self._begins.append(place.begin_byte)
            self._ends.append(place.end_byte)
            self._checks.append(place.check)
            self.num_items = first + num_items
        return num_known

    def places(self) -> list[Place]:
        """The entries, in order."""
        return list(map(Place, self._begins, self._ends, self._checks))

    def place_of(self, index: int) -> Place:
        """The entry that has an item."""
        which = bisect_right(self._firsts, index) - 1
        return Place(self._begins[which], self._ends[which], self._checks[which])


class DocumentIndex:
    """The documents' digests, by index, and the entries that tell the rest of them."""

    def __init__(self) -> None:
        self.chunks = Chunks()
        self._digests = bytearray()

    def __len__(self) -> int:
        return self.chunks.num_items

    def add(self, documents: TrainingDocuments, place: Place) -> None:
        """Take in an entry.

        Raises:
            LineageError: it does not go on where the documents before it ended.
        """
        digests = [bytes.fromhex(document.sha256) for document in documents.documents]
        if any(len(digest) != DIGEST_BYTES for digest in digests):
            raise LineageError("a document's digest on record has not 64 hex digits")
        num_known = self.chunks.add(documents.first_index, len(digests), place)
        self._digests += b"".join(digests[num_known:])

    def digest(self, index: int) -> bytes:
        """A document's SHA-256."""
        return bytes(self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])

    def find(self, digest: bytes) -> int | None:
        """Index of the first document that has this SHA-256."""
        begin = self._digests.find(digest)
        # A match may begin within one digest and end in the next.
        while begin % DIGEST_BYTES and begin >= 0:
            begin = self._digests.find(digest, begin + 1)
        return None if begin < 0 else begin // DIGEST_BYTES


class ExampleIndex:
    """The entries that tell which pieces of documents the examples were cut from."""

    def __init__(self) -> None:
        self.chunks = Chunks()

    def __len__(self) -> int:
        return self.chunks.num_items

    def add(self, examples: TrainingExamples, place: Place) -> None:
        """Take in an entry.

        Raises:
            LineageError: it does not go on where the examples before it ended.
        """
        self.chunks.add(examples.first_example_id, len(examples.num_pieces), place)
