"""An upstream whose answers are scripted, and generations over it with a real journal."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from dying_engine import STARTING_SPAN_ID, make_reader

from whence.v1 import generation_pb2 as g
from whence.v1.step_pb2 import Step
from whence_server.domain.decoding import DecodingRequest, FinishReason, Strategy
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import UpstreamAwayError, WhenceError
from whence_server.domain.limits import Limits
from whence_server.domain.observation import (
    DrawOrigin,
    Observation,
    SecondDistribution,
    WeightsOrigin,
)
from whence_server.domain.requests import GenerationRequest
from whence_server.domain.tracing import TraceContext
from whence_server.engines.upstream.engine import UpstreamEngine
from whence_server.engines.upstream.exchange import (
    UpstreamCandidate,
    UpstreamChunk,
    UpstreamDescription,
    UpstreamEnd,
    UpstreamEvent,
    UpstreamRequest,
    UpstreamToken,
)
from whence_server.engines.upstream.options import UpstreamOptions
from whence_server.generation.arrival import Arrival
from whence_server.generation.service import Generations
from whence_server.generation.texts import TextProcesses
from whence_server.generation.upstream_prepare import fit_checks
from whence_server.journal.journal import Journal
from whence_server.text.tokenizer import TextTokenizer

URL = "http://127.0.0.1:8000/v1"
TOLD = UpstreamDescription(
    kind="vllm",
    version="0.32.0",
    model="smol",
    max_context_length=100,
    max_candidates=20,
    takes_token_ids=True,
    claimed_files="/models/smol",
    processor_order=("temperature", "top_k", "top_p", "min_p"),
)
GRADES = Observation(
    second_distribution=SecondDistribution.NONE,
    draw=DrawOrigin.ENGINE,
    weights=WeightsOrigin.CLAIMED,
)


def away() -> UpstreamAwayError:
    return UpstreamAwayError(f"the upstream at {URL} does not answer", 0.01)


@dataclass
class FakeUpstream:
    """Upstream that plays one script for each request; the last one again and again.

    A script holds events, errors to raise, and `asyncio.Event`s to wait for.
    """

    scripts: list[list[object]] = field(default_factory=list)
    told: UpstreamDescription = TOLD
    grades: Observation = GRADES
    requests: list[UpstreamRequest] = field(default_factory=list)
    pinned: list[object] = field(default_factory=list)
    num_open: int = 0
    is_up: bool = True
    is_known: bool = True
    is_closed: bool = False
    refusal: WhenceError | None = None

    async def describe(self) -> UpstreamDescription:
        self.is_known = True
        return self.told

    def check(self, request: UpstreamRequest) -> None:
        if self.refusal is not None:
            raise self.refusal

    def grade(self, request: UpstreamRequest) -> Observation:
        return self.grades

    def pin(self) -> object:
        return self.told

    async def generate(
        self, request: UpstreamRequest, pinned: object
    ) -> AsyncIterator[UpstreamEvent]:
        self.requests.append(request)
        self.pinned.append(pinned)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.num_open += 1
        try:
            for part in script:
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, asyncio.Event):
                    await part.wait()
                else:
                    yield part  # type: ignore[misc]
        finally:
            self.num_open -= 1

    async def check_health(self) -> bool:
        return self.is_up

    def watch(self, on_doubt: Callable[[], None]) -> None:
        self.on_doubt = on_doubt

    async def is_same(self) -> bool:
        return self.is_known

    async def close(self) -> None:
        self.is_closed = True


def token(text: str, token_id: int | None = None, logprob: float = -0.5, **more: object):
    """Return a token with a table of itself and one other."""
    table = (
        UpstreamCandidate(text, logprob, token_id),
        UpstreamCandidate("?", -2.5, None if token_id is None else 99),
    )
    return UpstreamToken(text, token_id, logprob=logprob, rank=0, candidates=table, **more)


def chunk(*tokens: UpstreamToken, sequence: int = 0, **more: object) -> UpstreamChunk:
    """Return a chunk whose text is that of its tokens."""
    return UpstreamChunk(sequence, "".join(it.text for it in tokens), tokens, **more)


def finish(sequence: int = 0, reason: FinishReason = FinishReason.LENGTH, **more: object):
    return UpstreamChunk(sequence, "", (), reason, **more)


END = UpstreamEnd(3, 2, fingerprint="fp_1", model="smol")
USUAL: list[object] = [chunk(token(" a", 5)), chunk(token(" b", 6)), finish(), END]


def request(prompt: object = "Hi", **decoding: object) -> GenerationRequest:
    asked = {"strategy": Strategy.SAMPLE, "max_new_tokens": 8, **decoding}
    return GenerationRequest(input=prompt, digest="d", decoding=DecodingRequest(**asked))


class UpstreamService:
    """Generations over a fake upstream."""

    def __init__(self, upstream: FakeUpstream, options: UpstreamOptions) -> None:
        self.upstream = upstream

        async def open_upstream() -> FakeUpstream:
            return upstream

        self.engine = UpstreamEngine(options, open_upstream)

    async def begin(self, tmp_path: Path, **limits: int) -> None:
        self.model = await self.engine.start()
        self.journal = await Journal.open(tmp_path)
        has_text = bool(self.model.text.tokenizer_json)
        checks = fit_checks(self.model, Limits(**limits))
        self.texts = TextProcesses(*checks) if has_text else None
        self.generations = Generations(
            engine=self.engine,
            journal=self.journal,
            model=self.model,
            tokenizer=TextTokenizer(self.model.text, self.model.vocabulary_size)
            if has_text
            else None,
            texts=self.texts,
            limits=Limits(**limits),
            grader=self.engine,
        )
        self.running = asyncio.create_task(self.generations.run())

    async def start(self, wanted: GenerationRequest) -> str:
        context = TraceContext("0" * 32, STARTING_SPAN_ID, trace_state="v=1")
        return await self.generations.start(
            wanted, Arrival(context, time.time_ns(), time.monotonic_ns())
        )

    async def read(self, generation_id: str) -> "Recorded":
        """Return everything on record of a generation, once it has finished."""
        started, steps = g.GenerationStarted(), []
        async for entries in self.generations.follow(generation_id, 0, make_reader()):
            for entry in entries:
                if entry.kind is EntryKind.STARTED:
                    started = g.GenerationStarted.FromString(entry.payload)
                elif entry.kind is EntryKind.STEP:
                    steps.append(Step.FromString(entry.payload))
                elif entry.kind is EntryKind.FINISHED:
                    finished = g.GenerationFinished.FromString(entry.payload)
                    return Recorded(started, steps, finished)
        raise AssertionError("it ended without an end")

    async def run(self, wanted: GenerationRequest) -> "Recorded":
        return await self.read(await self.start(wanted))

    async def close(self) -> None:
        await self.engine.stop()
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        if self.texts is not None:
            await self.texts.close()
        await self.journal.close()


@dataclass
class Recorded:
    """A generation as it is on record."""

    started: g.GenerationStarted
    steps: list[Step]
    finished: g.GenerationFinished


async def serve(
    tmp_path: Path,
    scripts: Iterable[list[object]] = (USUAL,),
    *,
    options: UpstreamOptions | None = None,
    limits: dict[str, int] | None = None,
    **changes: object,
) -> UpstreamService:
    """Return generations over an upstream that plays scripts.

    Args:
        tmp_path: directory of the journal.
        scripts: see `FakeUpstream`.
        options: settings of the engine.
        limits: limits of the server.
        changes: fields of the upstream's description that differ.
    """
    upstream = FakeUpstream(list(scripts), told=replace(TOLD, **changes))
    service = UpstreamService(upstream, options or UpstreamOptions(URL, "", "0.1"))
    await service.begin(tmp_path, **(limits or {}))
    return service
