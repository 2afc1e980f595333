"""Forms in which the log stores the entries of a generation: in clear, or sealed."""

from typing import NamedTuple, Protocol

from whence_server.domain.entries import EntryKind
from whence_server.journal.rows import FinishIndex, GenerationIndex


class StoredLabel(NamedTuple):
    """A label as a store has it."""

    name: str
    value: str | None
    """None stands for every value."""


class Form(Protocol):
    """Conversion of one generation's entries to what is stored, in the order of appending."""

    def store_start(
        self, position: int, payload: bytes, index: GenerationIndex
    ) -> tuple[bytes, GenerationIndex]:
        """Return the stored form of STARTED and of the generation's columns."""

    def store(self, position: int, offset: int, kind: EntryKind, payload: bytes) -> bytes:
        """Return the stored form of an entry besides STARTED and FINISHED."""

    def store_finish(
        self, position: int, offset: int, payload: bytes, index: FinishIndex
    ) -> tuple[bytes, FinishIndex]:
        """Return the stored form of FINISHED and of its columns."""


class Forms(Protocol):
    """Choice of each generation's form."""

    def begin(self, generation_id: str) -> Form:
        """Return the form of a new generation."""

    def resume(self, generation_id: str) -> Form:
        """Return the form of a generation that an earlier run left unfinished."""

    def find_key_id(self, generation_id: str) -> bytes:
        """Return the id of the key that encrypts a generation; b"" if it is stored in clear."""

    def spell_label(self, name: str, value: str | None = None) -> list[StoredLabel]:
        """Return the ways in which a label may be stored: in clear, and as digests.

        Args:
            name: name of the label.
            value: its value; None for every value, which gives None.
        """


class _Clear:
    """Form that stores what it is given."""

    def store_start(
        self, _position: int, payload: bytes, index: GenerationIndex
    ) -> tuple[bytes, GenerationIndex]:
        return payload, index

    def store(self, _position: int, _offset: int, _kind: EntryKind, payload: bytes) -> bytes:
        return payload

    def store_finish(
        self, _position: int, _offset: int, payload: bytes, index: FinishIndex
    ) -> tuple[bytes, FinishIndex]:
        return payload, index


class _ClearForms:
    """Choice of the clear form for every generation."""

    def begin(self, _generation_id: str) -> Form:
        return CLEAR

    def resume(self, _generation_id: str) -> Form:
        return CLEAR

    def find_key_id(self, _generation_id: str) -> bytes:
        return b""

    def spell_label(self, name: str, value: str | None = None) -> list[StoredLabel]:
        return [StoredLabel(name, value)]


CLEAR: Form = _Clear()
CLEAR_FORMS: Forms = _ClearForms()
