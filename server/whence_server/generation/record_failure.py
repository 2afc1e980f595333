"""Choice of where entries go: to the journal or, while it cannot be written, to memory.

With the policy CLOSED nothing is served that cannot be recorded. With OPEN a service that is asked
goes on answering: new generations are unrecorded, and those that were running go on. The entries of
the latter wait in memory up to the journal's bound, beyond which they are interrupted.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from enum import Enum
from typing import NamedTuple, Protocol

from whence_server import logs
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationElsewhereError,
    JournalUnreachableError,
    JournalUnwritableError,
)
from whence_server.domain.generation import Started
from whence_server.generation.content.following import follow_recorded, follow_whole
from whence_server.generation.content.forms import StoredForms
from whence_server.generation.content.held import HeldContents
from whence_server.generation.content.record import create_record
from whence_server.generation.unrecorded import Unrecorded
from whence_server.journal.codec import encode_started
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow

_log = logging.getLogger(__name__)


class RecordFailure(Enum):
    """Policy for requests while the journal cannot be written."""

    OPEN = "open"
    CLOSED = "closed"


class Record(Protocol):
    """Holder of the entries of running generations."""

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append an entry of a running generation; return its offset."""
        ...

    def finish(self, generation_id: str, payload: bytes, index: FinishIndex) -> int:
        """Append FINISHED; return its offset."""
        ...

    def record_occurrence(self, generation_id: str, payload: bytes) -> None:
        """Append OCCURRENCE, outside the generation's offsets."""
        ...


class Begun(NamedTuple):
    """The start of a generation as it was recorded, and the holder of its further entries."""

    started: Started
    record: Record


class Recording:
    """Chooses where generations are recorded, by the state of the journal and the policy.

    Args:
        journal: the journal.
        policy: policy while the journal cannot be written.
        unrecorded: generations that the journal has not taken; None for none so far.
        forms: stored forms of the generations whose record holds less than their stream.
        contents: entries of those streams.

    Attributes:
        forms: see Args.
        contents: see Args.
        unrecorded: generations that the journal has not taken.
        starting: ids of the generations that are about to begin, each with the event of its begin.
    """

    def __init__(
        self,
        journal: Journal,
        policy: RecordFailure,
        unrecorded: Unrecorded | None = None,
        *,
        forms: StoredForms | None = None,
        contents: HeldContents | None = None,
    ) -> None:
        self._journal = journal
        self._is_open = policy is RecordFailure.OPEN
        self.unrecorded = unrecorded or Unrecorded()
        self.forms = forms or StoredForms()
        self.contents = contents or HeldContents()
        self.starting: dict[str, asyncio.Event] = {}
        self._away: dict[str, JournalUnreachableError] = {}
        """Errors by the ids that could not be held, because the database is away."""

    def check(self) -> None:
        """Raise if no new generation can be served.

        Raises:
            JournalUnwritableError: it could not be recorded, and the policy is CLOSED.
            JournalError: nothing more can be written, and the server ends.
        """
        try:
            self._journal.check_writable()
        except JournalUnwritableError:
            if not self._is_open:
                raise

    def is_taken(self, generation_id: str) -> bool:
        """Return whether a generation that the journal does not know has an id."""
        return generation_id in self.starting or self.unrecorded.find(generation_id) is not None

    async def look_up(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        index = self.unrecorded.find(generation_id)
        if index is not None:
            return GenerationRow(index, None)
        return await self._journal.look_up(generation_id)

    @asynccontextmanager
    async def hold(self, generation_id: str) -> AsyncIterator[None]:
        """Hold an id for a generation that begins within the block.

        Raises:
            GenerationExistsError: the id was used before, or another server has taken it.
            JournalUnwritableError: the database is away, and the policy is CLOSED.
        """
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._journal.sharing.hold(generation_id))
            except JournalUnreachableError as error:
                if not self._is_open:
                    raise
                self._away[generation_id] = error
                held.callback(self._away.pop, generation_id)
            yield

    def begin(self, index: GenerationIndex, started: Started, kept_s: float = 0.0) -> Begun:
        """Record the start of a generation.

        Args:
            index: columns of its row, if everything is stored.
            started: its start.
            kept_s: seconds after its end for which its caller may come back for the whole stream.

        Raises:
            GenerationExistsError: the id was used before.
            ContentsFullError: unread content of others takes too much memory.
            JournalUnwritableError: it cannot be recorded, and the policy is CLOSED.
            JournalError: nothing more can be written.
        """
        try:
            if (away := self._away.get(index.generation_id)) is not None:
                raise away
            record = create_record(self._journal, self.forms, index, started, self.contents, kept_s)
        except JournalUnwritableError as error:
            if not self._is_open:
                raise
            started = replace(started, unrecorded_reason=error.reason)
        else:
            return Begun(started, record)
        hiding = self.forms.choose_hiding(started.trace.content)
        self.unrecorded.create(index, encode_started(started), hiding)
        _log.warning(
            "generation %s is served unrecorded: the journal cannot be written (%s)",
            started.generation_id,
            started.unrecorded_reason,
            extra={logs.GENERATION_ID: started.generation_id},
        )
        return Begun(started, self.unrecorded)

    async def require_no_other_runs(self, generation_id: str) -> None:
        """Check that a generation is known, and that no other server runs it.

        Raises:
            GenerationNotFoundError: it does not exist, or was deleted.
            GenerationElsewhereError: another server runs it, which alone can stop it.
        """
        row = await self._journal.get(generation_id)
        if row.finish is None and await self._journal.sharing.is_elsewhere(generation_id):
            raise GenerationElsewhereError(generation_id)

    def follow(
        self,
        generation_id: str,
        after_offset: int,
        *,
        whole: bool = True,
        takes_record: bool = True,
    ) -> AsyncGenerator[list[Entry], None]:
        """Return a generator of a generation's entries after an offset, live, until FINISHED.

        Args:
            generation_id: id of the generation.
            after_offset: offset up to which entries are skipped.
            whole: True for the generation's own caller, whose stream is whole whatever the record
                keeps; False for a reader of the record.
            takes_record: True for a caller that goes on with the record where its stream is in
                memory no longer.

        Raises:
            ContentNotReadError: the stream is in memory no longer, and the record holds less.
            GenerationNotFoundError: it is not known, or was deleted.
        """
        if self.unrecorded.find(generation_id) is not None:
            return self.unrecorded.follow(generation_id, after_offset, whole=whole)
        held = self.contents.find(generation_id) if whole else None
        if held is not None:
            return follow_whole(self._journal, held, after_offset, takes_record=takes_record)
        if whole and not takes_record:
            return follow_recorded(self._journal, generation_id, after_offset)
        return self._journal.follow(generation_id, after_offset)

    async def wait_for_room(self) -> bool:
        """Wait while the engine has to be held back; return whether memory has room for entries.

        With OPEN it is not held back while the journal cannot be written.

        Raises:
            JournalError: nothing more can be written.
        """
        return await self._journal.wait_writable(in_stall=not self._is_open)
