"""GenerationService: starts, follows and stops generations."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from whence.v1 import generation_pb2
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry
from whence_server.domain.identity import Scope
from whence_server.domain.limits import Limits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.arrival import Arrival
from whence_server.generation.content.following import WholeEntries
from whence_server.generation.progress import Phase, Progress
from whence_server.generation.readers import Reader
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import convert_request, require_generation_id
from whence_server.rpc.forks import make_branch_request
from whence_server.rpc.progress import ProgressTeller
from whence_server.rpc.serving import Serving
from whence_server.rpc.splice import build_responses, require_readable

SERVICE = "whence.v1.GenerationService"

# Converting a request of this size takes a few milliseconds.
_INLINE_BYTES = 32 << 10
_INLINE_TOKENS = 4_096


class GenerationServicer:
    """Servicer that streams generations from the journal."""

    def __init__(self, serving: Serving, limits: Limits) -> None:
        self._serving = serving
        self._limits = limits
        self._converting = asyncio.Lock()

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [
            Method("Generate", generation_pb2.GenerateRequest, stream=self.generate, recorded=True),
            Method(
                "ResumeGeneration",
                generation_pb2.ResumeGenerationRequest,
                stream=self.resume,
                recorded=True,
            ),
            Method(
                "ForkGeneration",
                generation_pb2.ForkGenerationRequest,
                stream=self.fork,
                recorded=True,
            ),
            Method("CancelGeneration", generation_pb2.CancelGenerationRequest, unary=self.cancel),
        ]

    def generate(
        self, request: generation_pb2.GenerateRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Start a generation, or join the one that an equal request started."""
        return self._start(lambda: self._convert(request), call)

    def fork(
        self, request: generation_pb2.ForkGenerationRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Start a branch of a generation, or join the one that an equal request started."""
        # ForkGenerationResponse has the fields of GenerateResponse.
        return self._start(lambda: self._convert_fork(request, call), call)

    async def _start(
        self, convert: Callable[[], Awaitable[GenerationRequest]], call: Call
    ) -> AsyncGenerator[bytes, None]:
        generations = self._serving.get_generations()
        progress = ProgressTeller(lambda: self._find_progress(call))
        call.make_filler = progress.make_message
        wanted = await convert()
        arrival = Arrival(call.trace_context, call.time_ns, call.monotonic_ns, call.identity.id)
        call.generation_id = await generations.start(wanted, arrival)
        following = generations.follow(call.generation_id, 0, _make_reader(call))
        async for message in _read_messages(following, progress):
            yield message

    def _find_progress(self, call: Call) -> Progress:
        if not call.generation_id:
            return Progress(Phase.PREPARING)
        return self._serving.get_progress(call.generation_id)

    async def _convert_fork(
        self, request: generation_pb2.ForkGenerationRequest, call: Call
    ) -> GenerationRequest:
        """Convert the request of a branch, with its parent's record, to the domain's type."""
        parent, model, tokenizer = await self._serving.read_parent(request, call.identity)
        convert = partial(
            make_branch_request,
            request,
            parent,
            model=model,
            limits=self._limits,
            tokenizer=tokenizer,
        )
        size = request.ByteSize() + parent.started.ByteSize()
        if size <= _INLINE_BYTES and len(parent.token_ids) <= _INLINE_TOKENS:
            return convert()
        async with self._converting:
            return await asyncio.to_thread(convert)

    async def _convert(self, request: generation_pb2.GenerateRequest) -> GenerationRequest:
        """Convert a request to the domain's type; large ones in a thread, one at a time.

        Converting thousands of messages or template arguments would block the event loop.
        """
        if request.ByteSize() <= _INLINE_BYTES:
            return convert_request(request, self._limits)
        async with self._converting:
            return await asyncio.to_thread(convert_request, request, self._limits)

    async def resume(
        self, request: generation_pb2.ResumeGenerationRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Follow a running or recorded generation after an offset; no model is needed."""
        generation_id = require_generation_id(request.generation_id)
        await self._serving.require_access(
            generation_id, call.identity, Scope.READ_ALL, Scope.READ_CONTENT
        )
        # Not before: a refused call is no entry of another caller's generation.
        call.generation_id = generation_id
        after = request.after_offset
        # A stream goes on; a reader that has nothing yet reads the record.
        is_own = after > 0 and await self._serving.is_own(call.generation_id, call.identity)
        policy = await self._serving.find_policy(call.generation_id)
        reader = _make_reader(call, is_own=is_own, takes_record=True)
        following = self._serving.follow(call.generation_id, after, reader)
        progress = ProgressTeller(lambda: self._find_progress(call), after)
        call.make_filler = progress.make_message
        async for message in _read_messages(following, progress, after, policy):
            yield message

    async def cancel(self, request: generation_pb2.CancelGenerationRequest, call: Call) -> bytes:
        """Stop a generation at once."""
        call.generation_id = require_generation_id(request.generation_id)
        await self._serving.require_access(call.generation_id, call.identity, Scope.ADMIN)
        await self._serving.cancel(call.generation_id, call.caller)
        return generation_pb2.CancelGenerationResponse().SerializeToString()


def _make_reader(call: Call, *, is_own: bool = True, takes_record: bool = False) -> Reader:
    return Reader(call.caller, call.was_ended_by_deadline, is_own, takes_record)


async def _read_messages(
    following: AsyncGenerator[list[Entry], None],
    progress: ProgressTeller,
    after_offset: int = 0,
    policy: ContentPolicy | None = None,
) -> AsyncGenerator[bytes, None]:
    """Yield the messages of a stream; of a resumed one if the record's policy is given."""
    async with aclosing(following) as batches:
        async for entries in batches:
            if policy is not None:
                require_readable(entries)
            for message in build_responses(entries, after_offset, _find_mark(entries, policy)):
                yield message
            progress.last_offset = entries[-1].offset


def _find_mark(entries: list[Entry], policy: ContentPolicy | None) -> int:
    """Return the policy by which entries of a resumed stream lack content; 0 if they are whole."""
    if policy is None or policy.is_whole or isinstance(entries, WholeEntries):
        return 0
    return policy.value
