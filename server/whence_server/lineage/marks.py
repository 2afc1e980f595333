"""Positions in the middle of a record at which a reader may begin."""

from pathlib import Path

from whence_server.lineage.reader import RecordedEvent, RecordReader

ENTRIES_PER_MARK = 1_024


class Marks:
    """Reader states after every `ENTRIES_PER_MARK` entries: about 100 bytes for each."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, bytes, int]] = []

    def add(self, recorded: RecordedEvent) -> None:
        """Add the record's next entry."""
        if recorded.position % ENTRIES_PER_MARK == 0:
            self._marks.append((recorded.position, recorded.hash, recorded.end_byte))

    def create_reader_before(self, position: int, path: Path, training_run_id: str) -> RecordReader:
        """Return a reader that has read up to the last mark at or before a position."""
        reader = RecordReader(path)
        which = position // ENTRIES_PER_MARK
        if which:
            reader.position, reader.head, reader.end_byte = self._marks[which - 1]
            reader.training_run_id = training_run_id
        return reader
