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


@dataclass(slots=True)
class Parent:
    """Record of a generation, as far as a branch of one of its sequences needs it.

    Attributes:
        started: its start.
        steps: the sequence's steps, by index from 0.
    """

    started: GenerationStarted
    steps: list[Step] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The generation's id."""
        return self.started.generation_id

    def get_token_ids(self, begin: int, end: int) -> tuple[int, ...]:
        """Return the tokens of the steps [begin, end).

        Raises:
            ForkRefusedError: the record does not have one of them.
        """
        for step in self.steps[begin:end]:
            if not step.HasField("token_id"):
                raise ForkRefusedError(self.id, f"token {step.index} {self._explain_absence()}")
        return tuple(step.token_id for step in self.steps[begin:end])

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
    journal: Journal, generation_id: str, sequence_index: int, num_steps: int
) -> Parent:
    """Read the start of a generation, and a sequence's first steps.

    Args:
        journal: the journal.
        generation_id: id of the generation.
        sequence_index: index of the sequence.
        num_steps: number of steps to read, if they are on record; of a forced sequence all are
            read.

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
    if parent.started.effective_decoding.HasField("forced"):
        num_steps = sys.maxsize
    offset = 0
    while len(parent.steps) < num_steps and (
        entries := await journal.read(
            generation_id, after_offset=offset, limit=_PAGE, kinds=(EntryKind.STEP,)
        )
    ):
        # Thousands of steps with their candidates take a tenth of a second.
        steps = await asyncio.to_thread(_parse_steps, entries, sequence_index)
        parent.steps += steps[: num_steps - len(parent.steps)]
        offset = entries[-1].offset
    return parent


def _parse_steps(entries: Sequence[Entry], sequence_index: int) -> list[Step]:
    steps = (Step.FromString(entry.payload) for entry in entries)
    return [step for step in steps if step.sequence_index == sequence_index]


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
    if started.tokenizer_digest != model.tokenizer_digest:
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
    if recorded != served:
        _refuse(generation_id, "tokens", recorded, served, "weights")
    if started.HasField("adapter"):
        adapter = find_adapter(model, started.adapter.name)
        found = "" if adapter is None else adapter.weights_digest
        if found != started.adapter.weights_digest:
            _refuse(generation_id, "tokens", started.adapter.weights_digest, found, "adapter")


def _refuse(generation_id: str, what: str, recorded: str, served: str, of: str) -> None:
    raise ForkRefusedError(
        generation_id,
        f"its {what} are of the {of} {recorded or 'with an unknown digest'}, and this server "
        f"serves {served or 'one with an unknown digest'}",
    )
