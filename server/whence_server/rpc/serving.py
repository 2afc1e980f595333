"""The served model, which all servicers share; set once it is loaded."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from google.protobuf.message import DecodeError

from whence.v1.generation_pb2 import ForkGenerationRequest, GenerationStarted
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    GenerationNotFoundError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    NoModelError,
    NotOfferedError,
    RecordDamagedError,
    WhenceError,
)
from whence_server.domain.identity import Identity, Scope
from whence_server.domain.model import ModelInfo
from whence_server.domain.occurrences import Caller
from whence_server.generation.parents import Parent, read_parent
from whence_server.generation.progress import Phase, Progress
from whence_server.generation.readers import Reader
from whence_server.generation.service import Generations
from whence_server.journal.journal import Journal
from whence_server.rpc.conversions import require_generation_id
from whence_server.rpc.visibility import require_access
from whence_server.text.tokenizer import TextTokenizer

# The SDK, while it waits for the model, asks again after 5 s at most, and connects again after 6 s.
_WAITING_S = 7.0
_MOST_PARENT_READERS = 2


class Serving:
    """The served model and its generations.

    Attributes:
        model_name: name of the model, known before it is loaded.
        model: None while the model is loading.
        tokenizer: None while the model is loading, and for an upstream whose tokenizer is not
            known.
        failure: error with which the load failed; None if it has not.
        has_model: False if the server only records.
    """

    def __init__(
        self,
        model_name: str,
        journal: Journal,
        *,
        has_model: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model_name = model_name
        self.has_model = has_model
        self._journal = journal
        self._clock = clock
        self.model: ModelInfo | None = None
        self.tokenizer: TextTokenizer | None = None
        self.failure: ModelFailedError | None = None
        self._generations: Generations | None = None
        self._reading_parents = asyncio.Semaphore(_MOST_PARENT_READERS)
        self._awaited_until_s = 0.0

    def set_ready(
        self, model: ModelInfo, tokenizer: TextTokenizer | None, generations: Generations
    ) -> None:
        """Set the loaded model; requests are served from now on.

        Args:
            model: the model.
            tokenizer: its tokenizer; None for an upstream whose tokenizer is not known.
            generations: its generations.
        """
        self.model, self.tokenizer, self._generations = model, tokenizer, generations
        # An upstream tells its name for the model.
        self.model_name = model.name

    @property
    def num_running(self) -> int:
        """Number of generations that run or wait; 0 without a model."""
        return 0 if self._generations is None else self._generations.num_running

    def is_taken(self, generation_id: str) -> bool:
        """Return whether a generation that the journal does not know has an id."""
        generations = self._generations
        return generations is not None and generations.recording.is_taken(generation_id)

    def set_failed(self, error: ConfigurationError) -> None:
        """Set the reason why the model cannot be loaded; callers are told from now on."""
        self.failure = ModelFailedError(error.message)

    def note_opened(self) -> None:
        """Remember that the port has just opened: callers may have waited for it."""
        self._awaited_until_s = self._clock() + _WAITING_S

    def note_early_call(self) -> None:
        """Remember that somebody asked for the model before it is loaded."""
        if self.failure is None:
            self._awaited_until_s = self._clock() + _WAITING_S

    @property
    def telling_s(self) -> float:
        """Seconds for which callers that wait are still to be told why the load failed."""
        return max(0.0, self._awaited_until_s - self._clock())

    def make_missing_error(self) -> WhenceError:
        """Return the error of a call that needs the model before it is loaded, or where none is."""
        if not self.has_model:
            return NoModelError()
        self.note_early_call()
        return self.failure or ModelNotReadyError()

    def get_generations(self) -> Generations:
        """Return the running generations.

        Raises:
            ModelNotReadyError: the model is loading.
            ModelFailedError: the model cannot be loaded.
            NoModelError: the server only records.
        """
        if self._generations is None:
            raise self.make_missing_error()
        return self._generations

    async def require_access(self, generation_id: str, identity: Identity, *others: Scope) -> None:
        """Check that a generation exists for a caller, as `visibility.require_access` does."""
        rows = self._generations or self._journal
        await require_access(rows, generation_id, identity, *others)

    async def is_own(self, generation_id: str, identity: Identity) -> bool:
        """Return whether a caller started a generation; True for all without authentication."""
        row = await (self._generations or self._journal).look_up(generation_id)
        return row is not None and row.index.owner == identity.id

    async def find_policy(self, generation_id: str) -> ContentPolicy:
        """Return the content policy of a recorded generation; FULL if it is not known."""
        with suppress(GenerationNotFoundError, RecordDamagedError, DecodeError, ValueError):
            for entry in await self._journal.read(
                generation_id, limit=1, kinds=(EntryKind.STARTED,)
            ):
                started = GenerationStarted.FromString(entry.payload)
                return ContentPolicy(started.content or ContentPolicy.FULL.value)
        return ContentPolicy.FULL

    async def read_parent(
        self, request: ForkGenerationRequest, identity: Identity
    ) -> tuple[Parent, ModelInfo, TextTokenizer]:
        """Return the record of a branch's parent, and the model that the branch needs.

        Raises:
            GenerationNotFoundError: the parent is not known, was deleted, or is another caller's.
            NotOfferedError: an upstream is served.
        """
        model, tokenizer = self.model, self.tokenizer
        if model is None:
            raise self.make_missing_error()
        if model.upstream is not None or tokenizer is None:
            raise NotOfferedError(
                "a branch needs whence's own engine: the API of an upstream takes no tokens to "
                "repeat"
            )
        parent_id = require_generation_id(request.parent_generation_id, "parent_generation_id")
        await self.require_access(parent_id, identity, Scope.READ_ALL, Scope.READ_CONTENT)
        # Of a long parent, megabytes are parsed: before any queue, and for as many calls as come.
        async with self._reading_parents:
            parent = await read_parent(
                self._journal, parent_id, request.sequence_index, request.step
            )
        return parent, model, tokenizer

    async def cancel(self, generation_id: str, caller: Caller) -> None:
        """Stop a generation at once; do nothing if it has finished. Without a model, none runs.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        if self._generations is None:
            await self._journal.get(generation_id)
        else:
            await self._generations.cancel(generation_id, caller)

    def follow(
        self, generation_id: str, after_offset: int, reader: Reader
    ) -> AsyncGenerator[list[Entry], None]:
        """Follow a generation's entries after an offset; without a model, only recorded ones.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        if self._generations is None:
            return self._journal.follow(generation_id, after_offset)
        return self._generations.follow(generation_id, after_offset, reader)

    def get_progress(self, generation_id: str) -> Progress:
        """Return the progress of a followed generation; without a model, none can run."""
        if self._generations is None:
            return Progress(Phase.RECORDING)
        return self._generations.get_progress(generation_id)

    def check_model(self, name: str) -> None:
        """Refuse the name of another model; "" names the served one.

        Raises:
            ModelNotFoundError: another model is served.
            NoModelError: the server only records.
        """
        if not self.has_model:
            raise NoModelError
        if name not in ("", self.model_name):
            raise ModelNotFoundError(name, self.model_name)
