"""Where a reader may begin in the middle of a record: every so many entries."""

from pathlib import Path

from whence_server.lineage.reader import RecordedEvent, RecordReader

ENTRIES_A_MARK = 1_024


class Marks:
    """Grows with the record: some 100 bytes for a thousand entries."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, bytes, int]] = []

    def pass_by(self, recorded: RecordedEvent) -> None:
        """Take in the record's next entry."""
        if recorded.position % ENTRIES_A_MARK == 0:
            self._marks.append((recorded.position, recorded.hash, recorded.end_byte))

    def reader_before(self, position: int, path: Path, training_run_id: str) -> RecordReader:
        """A reader that has read up to the last mark at or before an entry."""
        reader = RecordReader(path)
        which = position // ENTRIES_A_MARK
        if which:
            reader.position, reader.head, reader.end_byte = self._marks[which - 1]
            reader.training_run_id = training_run_id
        return reader
