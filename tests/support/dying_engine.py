"""Generations over a fake engine that dies on command, and a real journal."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tiny_models import byte_level_tokenizer

from whence.v1 import generation_pb2 as g
from whence_server.domain.decoding import (
    DecodingRequest,
    FinishReason,
    GenerationDefaults,
    Strategy,
    TokenInput,
)
from whence_server.domain.engine import (
    Admit,
    Cost,
    Prefilled,
    StepMade,
    StopGeneration,
    StopSequence,
    Turn,
)
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import EngineLostError
from whence_server.domain.limits import Limits
from whence_server.domain.model import Environment, ModelInfo, TextFiles
from whence_server.domain.occurrences import Caller
from whence_server.domain.requests import GenerationRequest
from whence_server.domain.steps import Decision
from whence_server.domain.tracing import TraceContext
from whence_server.generation.arrival import Arrival
from whence_server.generation.content.held import HeldContents
from whence_server.generation.readers import Reader
from whence_server.generation.record_failure import RecordFailure
from whence_server.generation.service import Generations
from whence_server.generation.texts import TextProcesses
from whence_server.journal.journal import Journal
from whence_server.text.tokenizer import TextTokenizer

MODEL = ModelInfo(
    name="m",
    architecture="A",
    num_parameters=1,
    num_layers=1,
    vocabulary_size=400,
    max_context_length=1_000,
    model_digest="0" * 64,
    tokenizer_digest="0" * 64,
    weights_digest="0" * 64,
    files=(),
    loaded_files=(),
    batched=True,
    environment=Environment("0", "0", "0", "float32", "cpu", 1, "sdpa"),
    defaults=GenerationDefaults(),
    text=TextFiles(byte_level_tokenizer().backend_tokenizer.to_str(), None, {}),
)
POISON = 13
STARTING_SPAN_ID = "1" * 16
"""Span id of the calls that `Service` starts generations with."""


def token_of(prompt: list[int], index: int) -> int:
    """Return the fake model's token at an index: a function of the prompt and the index."""
    return 40 + (prompt[0] * 7 + index * 3) % 50


class DyingEngine:
    """Fake engine that steps all generations, and dies when a prompt begins with POISON.

    Args:
        deaths: total numbers of turns after which it dies as well.
        can_restart: whether `restart` succeeds.
    """

    def __init__(self, deaths: list[int], *, can_restart: bool = True) -> None:
        self._deaths = deaths
        self._can_restart = can_restart
        self._jobs: dict[str, tuple[Admit, int]] = {}
        self._changed = asyncio.Event()
        self.restarted = asyncio.Event()
        self.num_steps = 0
        self.num_restarts = 0
        self.most_at_once = 0

    def send(self, message: Admit | StopSequence | StopGeneration) -> None:
        if isinstance(message, Admit):
            replayed = message.replays[0].token_ids if message.replays else []
            self._jobs[message.generation_id] = (message, len(replayed))
        else:
            self._jobs.pop(message.generation_id, None)
        self._changed.set()

    async def restart(self) -> None:
        self._jobs.clear()
        if not self._can_restart:
            raise EngineLostError("it is gone")
        self.num_restarts += 1
        self.restarted.set()

    async def read_turns(self) -> AsyncIterator[Turn]:
        while True:
            if not self._jobs:
                self._changed.clear()
                await self._changed.wait()
            prefilled, steps = [], []
            self.most_at_once = max(self.most_at_once, len(self._jobs))
            for generation_id, (admit, index) in list(self._jobs.items()):
                if admit.prompt_token_ids[0] == POISON and index >= 3:
                    raise EngineLostError("signal 11")
                if index == 0:
                    prefilled.append(Prefilled(generation_id, 0, 0, 1))
                last = index + 1 == admit.decoding.max_new_tokens
                steps.append(
                    StepMade(
                        generation_id,
                        0,
                        index,
                        Decision(token_of(admit.prompt_token_ids, index), -1.0),
                        1 + index,
                        FinishReason.LENGTH if last else None,
                    )
                )
                self._jobs[generation_id] = (admit, index + 1)
                if last:
                    del self._jobs[generation_id]
            self.num_steps += 1
            if self._deaths and self.num_steps >= self._deaths[0]:
                self._deaths.pop(0)
                raise EngineLostError("signal 9")
            yield Turn(Cost(0, 0, 0, len(steps)), prefilled=prefilled, steps=steps)
            await asyncio.sleep(0)


def request(first: int, num_tokens: int = 20) -> GenerationRequest:
    return GenerationRequest(
        input=TokenInput((first, 5, 6)),
        digest="d",
        decoding=DecodingRequest(Strategy.GREEDY, max_new_tokens=num_tokens),
    )


def make_reader(
    span_id: str = STARTING_SPAN_ID, method: str = "Generate", *, is_late: bool = False
) -> Reader:
    """Return a call that reads a generation; by default the one that started it."""
    context = TraceContext("a" * 32, span_id, "b" * 16)
    caller = Caller(f"whence.v1.GenerationService/{method}", context, "127.0.0.1", 50_000)
    return Reader(caller, lambda: is_late)


class Service:
    """Generations over a fake engine and a real journal."""

    def __init__(
        self,
        journal: Journal,
        engine: DyingEngine,
        limits: Limits,
        record_failure: RecordFailure = RecordFailure.CLOSED,
        contents: HeldContents | None = None,
    ) -> None:
        self.journal = journal
        tokenizer = TextTokenizer(MODEL.text, MODEL.vocabulary_size)
        self.generations = Generations(
            engine=engine,
            journal=journal,
            model=MODEL,
            tokenizer=tokenizer,
            texts=TextProcesses(MODEL, limits),
            limits=limits,
            record_failure=record_failure,
            contents=contents,
        )
        self.running = asyncio.create_task(self.generations.run())

    async def start(self, wanted: GenerationRequest, caller_id: str = "") -> str:
        context = TraceContext("0" * 32, STARTING_SPAN_ID)
        return await self.generations.start(
            wanted, Arrival(context, time.time_ns(), time.monotonic_ns(), caller_id)
        )

    async def finished(self, generation_id: str) -> g.GenerationFinished:
        async for entries in self.generations.follow(generation_id, 0, make_reader()):
            if entries[-1].kind is EntryKind.FINISHED:
                return g.GenerationFinished.FromString(entries[-1].payload)
        raise AssertionError("it ended without an end")

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.journal.close()


async def service(tmp_path: Path, engine: DyingEngine, **limits: Any) -> Service:
    return Service(await Journal.open(tmp_path), engine, Limits(**limits))
