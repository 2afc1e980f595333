"""Recording of occurrences of generations that may have ended long ago."""

from whence_server.domain.errors import GenerationNotFoundError
from whence_server.journal.log import EndedGeneration, Log
from whence_server.journal.readers import Readers
from whence_server.journal.sealing.forms import Forms
from whence_server.journal.store import Store


class LaterOccurrences:
    """Recorder of occurrences in one log.

    Args:
        log: the log.
        store: the log's store.
        readers: threads that read it.
        forms: forms in which entries are stored.
    """

    def __init__(self, log: Log, store: Store, readers: Readers, forms: Forms) -> None:
        self._log = log
        self._store = store
        self._readers = readers
        self._forms = forms

    async def record(self, generation_id: str, owner: str, payload: bytes) -> None:
        """Append OCCURRENCE of a generation, running or ended, outside its offsets.

        Args:
            generation_id: id of the generation.
            owner: its owner, whose stored bytes grow.
            payload: the occurrence.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            GenerationInOtherLogError: another server's log has it.
            RecordDamagedError: its rows are damaged, or its key is missing.
            JournalError: nothing more can be written.
        """
        while True:
            live = self._log.get_live(generation_id)
            if live is not None and live.finish is None:
                self._log.record_occurrence(generation_id, payload)
                return
            # Its end is on disk, or will be with the next commit.
            await self._log.flush()
            if self._log.is_deleting(generation_id):
                raise GenerationNotFoundError(generation_id, deleted=True)
            num_deletions = self._log.num_deletions
            ended = await self._readers.run(self._find, generation_id)
            # A deletion that began meanwhile may have destroyed the content before this entry.
            if self._log.num_deletions == num_deletions:
                self._log.record_later(ended, owner, payload)
                return

    def _find(self, generation_id: str) -> EndedGeneration:
        position, secret = self._store.find_ended(generation_id)
        return EndedGeneration(position, secret, self._forms.resume(generation_id))
