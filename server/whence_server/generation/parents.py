"""Parents of branches, as the journal has them."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ForkRefusedError, GenerationNotFoundError
from whence_server.domain.model import ModelInfo
from whence_server.generation.adapters import find_adapter
from whence_server.journal.journal import Journal

_PAGE = 1_000
_PAGE_BYTES = 1 << 20
"""Size of the steps that are held at once: one step may have kilobytes of candidates."""


@dataclass(slots=True)
class Parent:
    """Record of a generation, as far as a branch of one of its sequences needs it.

    Attributes:
        started: its start.
        token_ids: tokens of the sequence's steps, by index from 0; None for one that is not on
            record.
        candidate_ids: candidates of the step that the branch is made at, likeliest first.
    """

    started: GenerationStarted
    token_ids: list[int | None] = field(default_factory=list)
    candidate_ids: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """The generation's id."""
        return self.started.generation_id

    def get_token_ids(self, begin: int, end: int) -> tuple[int, ...]:
        """Return the tokens of the steps [begin, end).

        Raises:
            ForkRefusedError: the record does not have one of them.
        """
        found: list[int] = []
        for index, token_id in enumerate(self.token_ids[begin:end], begin):
            if token_id is None:
                raise ForkRefusedError(self.id, f"token {index} {self._explain_absence()}")
            found.append(token_id)
        return tuple(found)

    def get_prompt_token_ids(self) -> tuple[int, ...]:
        """Return the prompt.

        Raises:
            ForkRefusedError: the record does not have it.
        """
        if not self.started.prompt_token_ids:
            raise ForkRefusedError(self.id, f"its prompt {self._explain_absence()}")
        return tuple(self.started.prompt_token_ids)

    def _explain_absence(self) -> str:
        if self.started.content == ContentPolicy.NONE.value:
            return "is not on record: the content policy keeps no token ids (content: none)"
        return "is not on record: a part of the text was redacted before it was stored"


async def read_parent(
    journal: Journal, generation_id: str, sequence_index: int, step: int
) -> Parent:
    """Read the start of a generation, and the tokens of a sequence up to a step.

    Args:
        journal: the journal.
        generation_id: id of the generation.
        sequence_index: index of the sequence.
        step: index of the step that the branch is made at; the tokens up to it are read, if they
            are on record. Of a forced sequence all are read.

    Raises:
        GenerationNotFoundError: it is not known, or was deleted.
        RecordDamagedError: its entries have changed since they were written.
    """
    row = await journal.get(generation_id)
    if row.finish is None:
        # A caller has a running generation's tokens before they are committed.
        await journal.flush()
    parent = None
    for entry in await journal.read(generation_id, limit=1, kinds=(EntryKind.STARTED,)):
        parent = Parent(GenerationStarted.FromString(entry.payload))
    if parent is None:
        raise GenerationNotFoundError(generation_id)
    is_forced = parent.started.effective_decoding.HasField("forced")
    num_steps = sys.maxsize if is_forced else step + 1
    offset = 0
    while len(parent.token_ids) < num_steps and (
        entries := await journal.read(
            generation_id,
            after_offset=offset,
            limit=_PAGE,
            kinds=(EntryKind.STEP,),
            max_bytes=_PAGE_BYTES,
        )
    ):
        # Thousands of steps with their candidates take a tenth of a second.
        await asyncio.to_thread(_add_steps, parent, entries, sequence_index, step)
        offset = entries[-1].offset
    del parent.token_ids[num_steps:]
    return parent


def _add_steps(parent: Parent, entries: Sequence[Entry], sequence_index: int, step: int) -> None:
    for entry in entries:
        found = Step.FromString(entry.payload)
        if found.sequence_index != sequence_index:
            continue
        if len(parent.token_ids) == step:
            parent.candidate_ids = tuple(found.candidates.token_ids)
        parent.token_ids.append(found.token_id if found.HasField("token_id") else None)


def require_same_model(started: GenerationStarted, model: ModelInfo) -> None:
    """Check that a parent's tokens are of the weights that are served.

    Raises:
        ForkRefusedError: they are of others.
        InvalidRequestError: the server does not have the parent's adapter.
    """
    generation_id = started.generation_id
    if started.HasField("upstream"):
        raise ForkRefusedError(
            generation_id, "its tokens are of an upstream, and not of the model that is served here"
        )
    if not started.tokenizer_digest or started.tokenizer_digest != model.tokenizer_digest:
        _refuse(
            generation_id,
            "token ids",
            started.tokenizer_digest,
            model.tokenizer_digest,
            "tokenizer",
        )
    recorded, served = started.environment.weights_digest, model.weights_digest
    if not recorded:
        recorded, served = started.model_digest, model.model_digest
    if not recorded or recorded != served:
        _refuse(generation_id, "tokens", recorded, served, "weights")
    if started.HasField("adapter"):
        adapter = find_adapter(model, started.adapter.name)
        found = "" if adapter is None else adapter.weights_digest
        if found != started.adapter.weights_digest:
            _refuse(generation_id, "tokens", started.adapter.weights_digest, found, "adapter")


def require_known_draws(started: GenerationStarted, *, gives_seed: bool) -> None:
    """Check that a branch which samples can have its parent's draws, or has a seed of its own.

    Args:
        started: start of the parent.
        gives_seed: True if the request of the branch has a seed.

    Raises:
        ForkRefusedError: another program drew the parent's tokens.
    """
    if started.HasField("recorded") and not gives_seed:
        library = started.recorded.library or "another program"
        raise ForkRefusedError(
            started.generation_id,
            f"its tokens were drawn by {library}, whose draws are not repeated here: give a seed",
        )


def _refuse(generation_id: str, what: str, recorded: str, served: str, of: str) -> None:
    raise ForkRefusedError(
        generation_id,
        f"its {what} are of the {of} {recorded or 'with an unknown digest'}, and this server "
        f"serves {served or 'one with an unknown digest'}",
    )
