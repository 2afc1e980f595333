"""Origins of generations: read from their starts, and cached."""

from collections import OrderedDict

from google.protobuf.message import DecodeError

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.spans.content import keeps_text
from whence_server.telemetry.spans.origin import Origin, read_origin
from whence_server.telemetry.spans.token_names import NameBook

_MAX_ORIGINS = 4_096
_STARTED = frozenset({EntryKind.STARTED})


class Origins:
    """Cache of origins.

    Args:
        journal: read for starts that are not cached.
        names: names of the generations' tokens.

    Attributes:
        cached: origins by generation id; None where the start is deleted or unreadable.
    """

    def __init__(self, journal: GenerationReader, names: NameBook) -> None:
        self.cached: OrderedDict[str, Origin | None] = OrderedDict()
        self._journal = journal
        self._names = names

    async def begin(self, entry: Entry) -> Origin:
        """Read and cache the origin of a STARTED entry's generation.

        Raises:
            DecodeError: the payload is no GenerationStarted.
            ValueError: the trace id or the span id is not a W3C id.
        """
        origin = await self._read(entry)
        self._remember(entry.generation_id, origin)
        return origin

    async def find(self, generation_id: str) -> Origin | None:
        """Return a generation's origin; None if its start is deleted or unreadable."""
        if generation_id in self.cached:
            self.cached.move_to_end(generation_id)
            return self.cached[generation_id]
        try:
            entry = await _read_start(self._journal, generation_id)
            origin = None if entry is None else await self._read(entry)
        except (DecodeError, ValueError):
            origin = None
        self._remember(generation_id, origin)
        return origin

    def forget(self, generation_id: str) -> None:
        """Remove a deleted generation."""
        self.cached.pop(generation_id, None)

    async def _read(self, entry: Entry) -> Origin:
        started = GenerationStarted.FromString(entry.payload)
        digest = started.tokenizer_digest if keeps_text(started) else ""
        words = await self._names.find(digest, entry.position)
        return read_origin(started, words)

    def _remember(self, generation_id: str, origin: Origin | None) -> None:
        self.cached[generation_id] = origin
        if len(self.cached) > _MAX_ORIGINS:
            self.cached.popitem(last=False)


async def read_started(journal: GenerationReader, generation_id: str) -> GenerationStarted | None:
    """Read a generation's start; None if it was deleted.

    Raises:
        DecodeError: the payload is no GenerationStarted.
    """
    entry = await _read_start(journal, generation_id)
    return None if entry is None else GenerationStarted.FromString(entry.payload)


async def _read_start(journal: GenerationReader, generation_id: str) -> Entry | None:
    """Read the entry of a generation's start; None if it was deleted."""
    try:
        entries = await journal.read(generation_id, 0, 1, _STARTED)
    except GenerationNotFoundError:
        return None
    return entries[0] if entries and entries[0].payload else None
