"""Recorders of other processes: what each has sent, and whether it comes back."""

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

from whence_server.domain.errors import (
    CallerLimitError,
    Code,
    FieldViolation,
    GenerationExistsError,
    InvalidRequestError,
    JournalError,
    WhenceError,
)
from whence_server.domain.generation import Failure, Started
from whence_server.domain.model import ModelInfo, TrainingRunRef
from whence_server.domain.recorded import (
    GRACE_S,
    MAX_BATCHES,
    MAX_MODELS,
    BatchStart,
    RecordedModel,
    Refusal,
)
from whence_server.generation.content.forms import StoredForms
from whence_server.generation.recording.batches import (
    ReadyModel,
    RecordedBatch,
    decode_prompts,
    make_starts,
)
from whence_server.generation.recording.shares import check_recorders, check_tokenizers
from whence_server.generation.recording.tokenizers import TokenizerParts, Tokenizers
from whence_server.journal.journal import Journal
from whence_server.journal.recorded_vocabularies import RecordedVocabularies
from whence_server.text.tokenizer import TextTokenizer

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0

LinkModel = Callable[[ModelInfo], Awaitable[TrainingRunRef | None]]


class Recorder:
    """One recorder, over all its connections.

    Attributes:
        library: library that records, with its version.
        owner: id of the caller, which owns the generations; "" without authentication.
        last_number: number up to which its messages were taken.
        last_answer: number up to which they are on disk, as far as it was told.
        models: its models by their numbers, ready for batches; the one used last is at the end.
        batches: its batches that run, by their numbers.
        refusals: batches refused since they were last told.
        parts: the tokenizer that is being received; None for none.
        num_calls: number of connections so far; the newest is the only one that counts.
    """

    def __init__(self, library: str, last_number: int, owner: str = "") -> None:
        self.library = library
        self.owner = owner
        self.last_number = self.last_answer = last_number
        self.models: dict[int, ReadyModel] = {}
        self.batches: dict[int, RecordedBatch] = {}
        self.refusals: list[Refusal] = []
        self.parts: TokenizerParts | None = None
        self.num_calls = 0
        self.expiry: asyncio.TimerHandle | None = None
        self._refused_last = 0

    def find_batch(self, batch_number: int) -> RecordedBatch | None:
        """Return a running batch; refuse one that is not known, once."""
        batch = self.batches.get(batch_number)
        if batch is None and batch_number != self._refused_last:
            self.refuse(
                batch_number,
                Failure(
                    Code.NOT_FOUND,
                    "BATCH_NOT_FOUND",
                    "the batch is not running here: it has ended, or the server was restarted",
                ),
            )
        return batch

    def refuse(self, batch_number: int, failure: Failure) -> None:
        """End a batch, if it runs, and tell its recorder."""
        batch = self.batches.pop(batch_number, None)
        if batch is not None:
            batch.fail(failure)
        self._refused_last = batch_number
        self.refusals.append(Refusal(batch_number, failure))

    def note_loss(self, num_generations: int) -> None:
        """Log generations that are not on record."""
        _log.warning(
            "%d generations of %s are not on record: the buffer of their recorder was full",
            num_generations,
            self.library,
        )

    def take_refusals(self) -> list[Refusal]:
        """Return the refusals that were not told yet."""
        taken, self.refusals = self.refusals, []
        return taken


class Recorders:
    """All recorders that are connected, or were so within the last minute.

    All methods are called from one event loop.

    Args:
        journal: the journal.
        vocabularies: keeps the vocabularies of recorded models.
        find_served: returns the served model; None while there is none.
        link: finds the training run that made a model.
        is_taken: tells if a served generation that the journal does not know has an id.
        max_generations: maximum number of generations of one caller that are being recorded; 0 for
            no limit. A batch is recorded whole.
        forms: stored forms of generations whose record holds less than all.
    """

    def __init__(
        self,
        journal: Journal,
        vocabularies: RecordedVocabularies,
        find_served: Callable[[], ModelInfo | None],
        link: LinkModel,
        *,
        is_taken: Callable[[str], bool] = lambda _: False,
        max_generations: int = 0,
        forms: StoredForms | None = None,
        max_stored_bytes: int = 0,
    ) -> None:
        self._forms = forms or StoredForms()
        self._journal = journal
        self._vocabularies = vocabularies
        self._find_served = find_served
        self._link = link
        self._tokenizers = Tokenizers()
        self._kept: dict[str, int] = {}
        """Number of ids of each vocabulary that is kept, by the tokenizer's digest."""
        self._is_taken = is_taken
        self._starting: set[str] = set()
        """Ids of the batches that are about to begin."""
        self._max_generations = max_generations
        self._max_stored_bytes = max_stored_bytes
        # By owner and id: a caller cannot go on with another caller's recorder.
        self._recorders: dict[tuple[str, str], Recorder] = {}

    def connect(
        self, recorder_id: str, library: str, first_number: int, owner: str = ""
    ) -> Recorder:
        """Return a recorder of a caller that has connected, known or new.

        Raises:
            RecordersFullError: there are too many recorders, of this caller or in all.
        """
        key = (owner, recorder_id)
        recorder = self._recorders.get(key)
        if recorder is None:
            check_recorders([name for name, _ in self._recorders], owner)
            recorder = Recorder(library, max(first_number - 1, 0), owner)
            self._recorders[key] = recorder
        if recorder.expiry is not None:
            recorder.expiry.cancel()
        recorder.parts = None
        recorder.num_calls += 1
        return recorder

    def disconnect(self, recorder_id: str, num_calls: int, owner: str = "") -> None:
        """Give a recorder time to come back, unless it has already: then `num_calls` is older."""
        key = (owner, recorder_id)
        recorder = self._recorders.get(key)
        if recorder is None or recorder.num_calls != num_calls:
            return
        # Even without a batch: its last message may be sent again.
        loop = asyncio.get_running_loop()
        recorder.expiry = loop.call_later(GRACE_S, self._forget, key)

    def _forget(self, key: tuple[str, str]) -> None:
        recorder = self._recorders.pop(key)
        for batch in recorder.batches.values():
            batch.interrupt()
        if recorder.batches:
            _log.warning(
                "interrupted %d batches of a recorder that did not come back within %g s",
                len(recorder.batches),
                GRACE_S,
            )

    # ---- models ----

    async def add_model(self, recorder: Recorder, model: RecordedModel) -> bool:
        """Add a model; return False if its tokenizer is needed first.

        Raises:
            RecordersFullError: the tokenizers of recorders would take too much memory.
        """
        if model.number in recorder.models:
            return True
        tokenizer = self._tokenizers.find(model)
        if tokenizer is None:
            recorder.parts = None
            check_tokenizers(self._recorders.values(), recorder.owner, model.tokenizer_bytes)
            recorder.parts = TokenizerParts(model)
            return False
        await self._make_ready(recorder, model, tokenizer)
        return True

    async def add_part(self, recorder: Recorder, sha256: str, content: bytes) -> int:
        """Take a part of a tokenizer; return the number of the model that is ready, else 0.

        Raises:
            InvalidRequestError: the tokenizer was not asked for, or cannot be read.
        """
        parts = recorder.parts
        if parts is None or parts.model.tokenizer_sha256 != sha256:
            raise InvalidRequestError(FieldViolation("tokenizer.sha256", "was not asked for"))
        parts.add(content)
        whole = parts.content
        if whole is None:
            return 0
        recorder.parts = None
        tokenizer = await self._tokenizers.load(parts.model, whole)
        await self._make_ready(recorder, parts.model, tokenizer)
        return parts.model.number

    async def _make_ready(
        self, recorder: Recorder, model: RecordedModel, tokenizer: TextTokenizer
    ) -> None:
        info = await self._identify(model)
        recorder.models[model.number] = ReadyModel(info, tokenizer, model.tokenizer_bytes)
        if len(recorder.models) > MAX_MODELS:
            # A service that trains its model has another one after each change of the weights.
            recorder.models.pop(next(iter(recorder.models)))

    async def _identify(self, model: RecordedModel) -> ModelInfo:
        """Return the model with what this server knows of weights with its digest.

        The digest stays the other process's word: any caller can send that of the served weights.
        """
        info, served = model.info, self._find_served()
        if (
            not info.weights_digest
            or served is None
            or info.weights_digest != served.weights_digest
        ):
            return dataclasses.replace(info, training_run=await self._link(info))
        tokenizer_json = served.text.tokenizer_json.encode()
        is_same = hashlib.sha256(tokenizer_json).hexdigest() == model.tokenizer_sha256
        return dataclasses.replace(
            info,
            model_digest=served.model_digest,
            tokenizer_digest=served.tokenizer_digest if is_same else info.tokenizer_digest,
            training_run=served.training_run,
        )

    # ---- batches ----

    async def begin(self, recorder: Recorder, start: BatchStart) -> None:
        """Begin a batch; refuse it if it cannot be recorded.

        Raises:
            JournalError: nothing can be written at present; the batch can be begun again.
        """
        try:
            model = self._find_model(recorder, start)
            with self._reserve_ids(start):
                texts = await decode_prompts(model.tokenizer, start.prompts)
                await self._check_ids(start)
                await self._journal.stored.check(recorder.owner, self._max_stored_bytes)
                await self._keep_vocabulary(model, recorder.owner)
                ids = (one.generation_id for one in start.prompts)
                starts = make_starts(
                    start, model.info, texts, library=recorder.library, owner=recorder.owner
                )
                async with self._prepare(starts), self._journal.sharing.hold(*ids):
                    recorder.batches[start.number] = RecordedBatch(
                        start, model, starts, journal=self._journal, forms=self._forms
                    )
        except JournalError:
            raise
        except WhenceError as error:
            recorder.refuse(start.number, Failure(error.code, error.reason, error.message))

    @asynccontextmanager
    async def _prepare(self, starts: Sequence[Started]) -> AsyncGenerator[None, None]:
        """Search the texts of long starts in threads, one after the other, for the block."""
        async with AsyncExitStack() as prepared:
            for started in starts:
                await prepared.enter_async_context(self._forms.prepare(started))
            # A disk may have become full meanwhile.
            self._journal.check_writable()
            yield

    @contextmanager
    def _reserve_ids(self, start: BatchStart) -> Iterator[None]:
        """Reserve the ids of a batch until it has begun.

        Raises:
            GenerationExistsError: an id is twice in it, or of another generation that begins.
        """
        ids: set[str] = set()
        for prompt in start.prompts:
            generation_id = prompt.generation_id
            if generation_id in ids or generation_id in self._starting:
                raise GenerationExistsError(generation_id)
            ids.add(generation_id)
        self._starting |= ids
        try:
            yield
        finally:
            self._starting -= ids

    def _find_model(self, recorder: Recorder, start: BatchStart) -> ReadyModel:
        """Return the model of a batch, whose prompts it can have made."""
        model = recorder.models.pop(start.model_number, None)
        if model is None:
            raise InvalidRequestError(
                FieldViolation("begun.model_number", "is that of no model that is ready")
            )
        recorder.models[start.model_number] = model  # now the one used last
        if len(recorder.batches) >= MAX_BATCHES:
            raise InvalidRequestError(
                FieldViolation("begun", f"is one of more than {MAX_BATCHES} batches that run")
            )
        self._check_caller(recorder.owner)
        bound = model.info.vocabulary_size
        if any(max(prompt.token_ids) >= bound for prompt in start.prompts):
            raise InvalidRequestError(
                FieldViolation("begun.prompts.token_ids", f"must be below {bound}")
            )
        return model

    async def _keep_vocabulary(self, model: ReadyModel, owner: str) -> None:
        """Keep a model's vocabulary before its first generation: others need none on disk.

        Raises:
            VocabulariesFullError: it would take too many bytes.
        """
        digest, size = model.info.tokenizer_digest, model.info.vocabulary_size
        if self._kept.get(digest, 0) >= size:
            return
        await asyncio.to_thread(
            self._vocabularies.keep,
            digest,
            model.tokenizer.list_vocabulary(),
            self._journal.committed_position,
            owner,
        )
        self._kept[digest] = size

    async def _check_ids(self, start: BatchStart) -> None:
        """Raise GenerationExistsError if an id of a batch was used before, or is in use."""
        for prompt in start.prompts:
            record = await self._journal.look_up(prompt.generation_id)
            if record is not None or self._is_taken(prompt.generation_id):
                raise GenerationExistsError(prompt.generation_id)

    def _check_caller(self, owner: str) -> None:
        """Raise CallerLimitError if the caller has as many generations as one may have."""
        if not self._max_generations:
            return
        number = sum(
            len(batch.start.prompts)
            for recorder in self._recorders.values()
            if recorder.owner == owner
            for batch in recorder.batches.values()
        )
        if number >= self._max_generations:
            raise CallerLimitError(
                f"{number} generations that are being recorded",
                "--caller-max-generations",
                self._max_generations,
                _RETRY_AFTER_S,
            )

    def close(self) -> None:
        """Interrupt all batches, because the server ends."""
        for recorder in self._recorders.values():
            if recorder.expiry is not None:
                recorder.expiry.cancel()
            for batch in recorder.batches.values():
                # If the journal is lost, the next start ends the generations.
                with suppress(JournalError):
                    batch.interrupt()
        self._recorders.clear()
