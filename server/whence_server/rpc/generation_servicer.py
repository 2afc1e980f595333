"""GenerationService: starts, follows and stops generations."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from whence.v1 import generation_pb2
from whence_server.domain.entries import Entry
from whence_server.domain.limits import Limits
from whence_server.generation.service import Arrival
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import generation_request, require_generation_id
from whence_server.rpc.serving import Serving
from whence_server.rpc.splice import responses

SERVICE = "whence.v1.GenerationService"


class GenerationServicer:
    """Streams generations out of the journal."""

    def __init__(self, serving: Serving, limits: Limits) -> None:
        self._serving = serving
        self._limits = limits

    def methods(self) -> list[Method[Any]]:
        """The service's table."""
        return [
            Method("Generate", generation_pb2.GenerateRequest, stream=self.generate, recorded=True),
            Method(
                "ResumeGeneration",
                generation_pb2.ResumeGenerationRequest,
                stream=self.resume,
                recorded=True,
            ),
            Method("CancelGeneration", generation_pb2.CancelGenerationRequest, unary=self.cancel),
        ]

    async def generate(
        self, request: generation_pb2.GenerateRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Starts a generation, or joins the one that an equal request began."""
        generations = self._serving.generations()
        wanted = generation_request(request, self._limits)
        arrival = Arrival(call.trace_context, call.time_ns, call.monotonic_ns)
        call.generation_id = await generations.start(wanted, arrival)
        async for message in _messages(generations.follow(call.generation_id, 0)):
            yield message

    async def resume(
        self, request: generation_pb2.ResumeGenerationRequest, call: Call
    ) -> AsyncGenerator[bytes, None]:
        """Follows a generation from an offset on, live or recorded; needs no model for it."""
        call.generation_id = require_generation_id(request.generation_id)
        following = self._serving.follow(call.generation_id, request.after_offset)
        async for message in _messages(following):
            yield message

    async def cancel(self, request: generation_pb2.CancelGenerationRequest, call: Call) -> bytes:
        """Stops a generation at once."""
        call.generation_id = require_generation_id(request.generation_id)
        await self._serving.generations().cancel(call.generation_id)
        return generation_pb2.CancelGenerationResponse().SerializeToString()


async def _messages(
    following: AsyncGenerator[list[Entry], None],
) -> AsyncGenerator[bytes, None]:
    async with aclosing(following) as batches:
        async for entries in batches:
            for message in responses(entries):
                yield message
