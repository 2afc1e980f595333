"""Holder of a generation's entries whose record holds less than its caller's stream."""

import logging
from collections.abc import Sequence

from whence_server import logs
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import EntryKind
from whence_server.domain.generation import Started
from whence_server.generation.content.forms import Stored, StoredForm, StoredForms
from whence_server.generation.content.held import HeldContent, HeldContents
from whence_server.journal.codec import encode_started
from whence_server.journal.content_hiding import RECORD
from whence_server.journal.derive import derive_finished_index, derive_started_index
from whence_server.journal.entry_messages import MESSAGES
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex, GenerationIndex

_log = logging.getLogger(__name__)


def create_record(  # noqa: PLR0917 - a start and where it goes
    journal: Journal,
    forms: StoredForms,
    index: GenerationIndex,
    started: Started,
    contents: HeldContents | None = None,
    kept_s: float = 0.0,
) -> "Journal | ContentRecord":
    """Append STARTED to the journal; return the holder of the generation's entries.

    Args:
        journal: the journal.
        forms: stored forms of generations whose record holds less than their stream.
        index: columns of the generation's row, if everything is stored.
        started: its start.
        contents: holder of the entries of streams; None if no caller reads the generation's.
        kept_s: seconds after its end for which its caller may come back for the whole stream.

    Raises:
        GenerationExistsError: the id was used before.
        ContentsFullError: unread content of others takes too much memory.
        JournalUnwritableError: the disk is full or failing at present.
        JournalError: nothing more can be written.
    """
    form, payload = forms.make(started), encode_started(started)
    if form is None:
        journal.create(index, payload)
        return journal
    if contents is not None:
        contents.check_room()
    record = ContentRecord(journal, form)
    record.create(payload, contents, kept_s)
    return record


class ContentRecord:
    """Holder of one generation's entries: the journal gets the stored form, readers the whole.

    Args:
        journal: the journal.
        form: maker of the stored entries.
    """

    def __init__(self, journal: Journal, form: StoredForm) -> None:
        self._journal = journal
        self._form = form
        self._held: HeldContent | None = None
        self._offset = 1

    def create(
        self, payload: bytes, contents: HeldContents | None = None, kept_s: float = 0.0
    ) -> None:
        """Append STARTED, whose stored form gives the columns of the generation's row.

        Args:
            payload: the entry of the stream.
            contents: holder of the entries of streams; None if no caller reads them.
            kept_s: seconds after the generation's end for which its caller may come back.

        Raises:
            GenerationExistsError: the id was used before.
            JournalUnwritableError: the disk is full or failing at present.
            JournalError: nothing more can be written.
        """
        (stored,) = self._form.take(EntryKind.STARTED, payload)
        index = derive_started_index(stored.payload)
        self._journal.create(index, stored.payload)
        live = self._journal.get_live(index.generation_id)
        if contents is not None and live is not None:
            self._held = contents.hold(index.generation_id, live, kept_s)
            self._held.push(EntryKind.STARTED, payload)

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append an entry of a running generation; return its offset in the stream."""
        for stored in self._form.take(kind, payload):
            self._journal.append(generation_id, *stored)
        return self._push(kind, payload)

    def end_sequence(self, generation_id: str, index: int, stop: str) -> None:
        """Take the end of a sequence, for which entries may have waited."""
        for stored in self._form.end_sequence(index, stop):
            self._journal.append(generation_id, *stored)

    def finish(self, generation_id: str, payload: bytes, index: FinishIndex) -> int:
        """Append FINISHED, whose stored form gives the columns; return its offset."""
        del index
        *others, last = self._take_finish(generation_id, payload)
        for stored in others:
            self._journal.append(generation_id, *stored)
        self._finish(generation_id, last)
        # The statement is about the record: the caller's stream, which holds more, has it too.
        statement = self._journal.signing.find_statement(generation_id)
        offset = self._push(EntryKind.FINISHED, payload + statement)
        if self._held is not None:
            self._held.finish()
        return offset

    def _take_finish(self, generation_id: str, payload: bytes) -> Sequence[Stored]:
        """Return the stored entries that FINISHED settles; without content if its form fails.

        A generation that could not end would end the server.
        """
        try:
            return self._form.take(EntryKind.FINISHED, payload)
        except Exception:  # noqa: BLE001 - whatever it is, the generation has to end
            extra = {logs.GENERATION_ID: generation_id}
            _log.exception("a generation's end is stored without content", extra=extra)
        finished = MESSAGES[EntryKind.FINISHED].FromString(payload)
        RECORD[ContentPolicy.NONE].hide(finished)
        # The form has ended all sequences: what waited for more of their text is settled.
        waiting = self._form.end_sequence(0, "")
        return [*waiting, Stored(EntryKind.FINISHED, finished.SerializeToString())]

    def _finish(self, generation_id: str, stored: Stored) -> None:
        index = derive_finished_index(stored.payload)
        self._journal.finish(generation_id, stored.payload, index)

    def record_occurrence(self, generation_id: str, payload: bytes) -> None:
        """Append OCCURRENCE, outside the generation's offsets."""
        self._journal.record_occurrence(generation_id, payload)

    def _push(self, kind: EntryKind, payload: bytes) -> int:
        self._offset += 1
        if self._held is not None:
            self._held.push(kind, payload)
        return self._offset
