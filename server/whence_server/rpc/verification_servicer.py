"""VerificationService: computes recorded generations again."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from whence.summary.verifications import VERDICTS
from whence.v1 import verification_pb2
from whence_server.analysis.host import AnalysisHost
from whence_server.analysis.question import Question, Unverifiable
from whence_server.analysis.results import make_refusal
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import DrainingError
from whence_server.domain.identity import Identity, Scope
from whence_server.journal.journal import Journal
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import require_generation_id
from whence_server.rpc.parent_check import find_parent, list_differences
from whence_server.rpc.verification_record import (
    MAX_RECORD_BYTES,
    UnverifiableError,
    make_question,
)
from whence_server.rpc.visibility import require_access
from whence_server.rpc.watching import stop_at_close

SERVICE = "whence.v1.VerificationService"
_PAGE = 1_000
_KINDS = (
    EntryKind.STARTED,
    EntryKind.PROMPT_STEP,
    EntryKind.STEP,
    EntryKind.BEAM_ROUND,
    EntryKind.FINISHED,
)


class VerificationServicer:
    """Servicer that verifies records with the weights of this server.

    Args:
        journal: the records.
        host: the analysis process.
        closing: set when the server closes.
    """

    def __init__(self, journal: Journal, host: AnalysisHost, closing: asyncio.Event) -> None:
        self._journal = journal
        self._host = host
        self._closing = closing

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method(
                "VerifyGeneration",
                verification_pb2.VerifyGenerationRequest,
                stream=self.verify_generation,
            )
        ]

    async def verify_generation(
        self, request: verification_pb2.VerifyGenerationRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Stream the findings about one generation, and the verdict."""
        generation_id = require_generation_id(request.generation_id)
        await require_access(self._journal, generation_id, call.identity, Scope.READ_ALL)
        call.generation_id = generation_id
        await self._journal.get(generation_id)
        call.make_filler = verification_pb2.VerifyGenerationResponse().SerializeToString
        verdict = VerdictTeller()
        async with aclosing(self._verify(generation_id, request, call)) as messages:
            async for message in messages:
                # The verdict is known before the caller has it: it may go away.
                call.outcome = verdict.describe(message) or call.outcome
                yield message
        if self._closing.is_set():
            raise DrainingError

    async def _verify(
        self,
        generation_id: str,
        request: verification_pb2.VerifyGenerationRequest,
        call: Call,
    ) -> AsyncGenerator[bytes, None]:
        if not self._host.has_model:
            yield make_refusal(
                Unverifiable.NO_WEIGHTS,
                "this server has no weights: use whence-server verify-generation --model DIR",
            )
            return
        make_question = partial(
            self._make_question, generation_id, call.identity, every_step=request.every_step
        )
        asked = self._host.ask(make_question, call.identity.id or call.caller.address)
        try:
            async with aclosing(stop_at_close(asked, self._closing)) as messages:
                async for message in messages:
                    yield message
        except UnverifiableError as error:
            yield make_refusal(error.reason, error.message)

    async def _make_question(
        self, generation_id: str, identity: Identity, *, every_step: bool
    ) -> Question:
        record = verification_pb2.GenerationRecord()
        offset, num_bytes = 0, 0
        while entries := await self._journal.read(
            generation_id, after_offset=offset, limit=_PAGE, kinds=_KINDS
        ):
            num_bytes += sum(len(entry.payload) for entry in entries)
            if num_bytes > MAX_RECORD_BYTES:
                raise UnverifiableError(
                    Unverifiable.TOO_LARGE,
                    f"the record has more than {MAX_RECORD_BYTES >> 20} MiB",
                )
            await asyncio.to_thread(add_entries, record, entries)
            offset = entries[-1].offset
        question = await asyncio.to_thread(make_question, record, every_step=every_step)
        parent = await find_parent(self._journal, record.started, identity)
        if parent is None:
            return question
        found = await asyncio.to_thread(lambda: tuple(list_differences(record, parent)))
        contradictions = (*question.contradictions, *found)
        return question._replace(contradictions=contradictions, is_parent_compared=True)


class VerdictTeller:
    """Words about a verification for the audit, without content."""

    def __init__(self) -> None:
        self._fault = ""

    def describe(self, message: bytes) -> str:
        """Return the verdict in a response of the stream; "" if it has none."""
        event = verification_pb2.VerifyGenerationResponse.FromString(message)
        check = event.check
        is_fault = (
            check.outcome == verification_pb2.VERIFICATION_OUTCOME_DIFFERENT
            and check.subject != verification_pb2.VERIFICATION_SUBJECT_ENVIRONMENT
        )
        if is_fault and not self._fault:
            # Its message may hold texts.
            name = verification_pb2.VerificationSubject.Name(check.subject)
            self._fault = name.removeprefix("VERIFICATION_SUBJECT_").lower().replace("_", " ")
        return self._describe_result(event.result) if event.HasField("result") else ""

    def _describe_result(self, result: verification_pb2.VerificationResult) -> str:
        told = VERDICTS.get(result.verdict, "unknown")
        if result.reason:
            return f"{told}: {result.reason}"
        if result.basis == verification_pb2.VERIFICATION_BASIS_LOGPROBS:
            told += ", logprobs alone"
        elif result.num_given_steps:
            told += f", {result.num_given_steps} tokens given"
        if result.HasField("first_divergent"):
            first = result.first_divergent
            return f"{told}: step {first.sequence_index}.{first.index} first"
        if result.HasField("first_divergent_round"):
            return f"{told}: round {result.first_divergent_round.index} first"
        return f"{told}: {self._fault}" if self._fault else told


def add_entries(record: verification_pb2.GenerationRecord, entries: Sequence[Entry]) -> None:
    """Add a generation's entries to its record.

    Raises:
        UnverifiableError: an entry is not a message.
    """
    try:
        for entry in entries:
            match entry.kind:
                case EntryKind.STARTED:
                    record.started.MergeFromString(entry.payload)
                case EntryKind.PROMPT_STEP:
                    record.prompt_steps.add().MergeFromString(entry.payload)
                case EntryKind.STEP:
                    record.steps.add().MergeFromString(entry.payload)
                case EntryKind.BEAM_ROUND:
                    record.beam_rounds.add().MergeFromString(entry.payload)
                case EntryKind.FINISHED:
                    record.finished.MergeFromString(entry.payload)
                case _:
                    pass
    except DecodeError as error:
        raise UnverifiableError(
            Unverifiable.RECORD_UNREADABLE, f"an entry is not a message: {error}"
        ) from error
