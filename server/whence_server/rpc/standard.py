"""gRPC's own services, health and reflection, with the same checks as whence's methods.

Reflection has two names, `grpc.reflection.v1` and the older `v1alpha`, with equal messages.

With their generated registration, malformed messages and methods that the packages do not
implement would end with a traceback in the log and the status UNKNOWN.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from whence_server.access.gate import NOBODY, OPEN_GATE, Gate
from whence_server.access.sessions import ANYBODY, Admission
from whence_server.domain.errors import (
    FieldViolation,
    HealthNotFoundError,
    InvalidRequestError,
    WhenceError,
)
from whence_server.rpc.calls import Context, Malformed
from whence_server.rpc.credentials import read_credentials
from whence_server.rpc.one_message import read_one_message
from whence_server.rpc.status import abort

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION_V1ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
REFLECTION_V1 = REFLECTION_V1ALPHA.replace("v1alpha", "v1")


class Health(HealthServicer):  # type: ignore[misc]  # the package has no types
    """The standard health servicer, with `List`, with error messages, and behind a gate."""

    def __init__(self, gate: Gate = OPEN_GATE) -> None:
        super().__init__()
        self._gate = gate
        self._changed = asyncio.Event()
        """Replaced by another one at every change."""

    async def set(self, service: str, status: Any) -> None:
        """Set one service's state, and wake its watchers without waiting for any of them."""
        self._server_status[service] = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        """Return one service's state; end the call with NOT_FOUND for an unknown service."""
        await _refuse_malformed(request, context)
        if request.service not in self._server_status:
            await abort(context, HealthNotFoundError(request.service))
        return await super().Check(request, context)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        """Return the state of every service."""
        await _refuse_malformed(request, context)
        answer = health_pb2.HealthListResponse()
        for service, state in self._server_status.items():
            answer.statuses[service].status = state
        return answer

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the contract's name
        """Stream one service's state, now and after every change."""
        await _refuse_malformed(request, context)
        # Not the package's own, which writes under a lock: a caller that does not read would hold
        # up every change of the state, and all other watchers.
        last = None
        while True:
            changed = self._changed
            status = self._server_status.get(
                request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            )
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            await changed.wait()

    def make_handler(self) -> grpc.GenericRpcHandler:
        """Return gRPC's handler of the service."""
        parse_check = _make_parser(health_pb2.HealthCheckRequest)
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.stream_unary_rpc_method_handler(
                _adapt_to_stream(self.Check, f"{HEALTH}/Check", self._gate), parse_check, _serialize
            ),
            "List": grpc.stream_unary_rpc_method_handler(
                _adapt_to_stream(self.List, f"{HEALTH}/List", self._gate),
                _make_parser(health_pb2.HealthListRequest),
                _serialize,
            ),
            "Watch": grpc.stream_stream_rpc_method_handler(
                _adapt_to_stream(self.Watch, f"{HEALTH}/Watch", self._gate), parse_check, _serialize
            ),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)


def make_reflection_handlers(
    services: tuple[str, ...], gate: Gate = OPEN_GATE
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return gRPC's handlers of reflection over these services, health and reflection."""
    _describe_v1()
    names = (REFLECTION_V1, REFLECTION_V1ALPHA)
    servicer = ReflectionServicer((*services, HEALTH, *names))

    async def reflect(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        # Both names have one rule.
        admission = await _admit(gate, f"{REFLECTION_V1}/ServerReflectionInfo", context)

        async def read_sound() -> AsyncIterator[Any]:
            async for request in requests:
                await _refuse_malformed(request, context)
                yield request

        async with _keep(gate, admission, context):
            async for answer in servicer.ServerReflectionInfo(read_sound(), context):
                yield answer

    method = grpc.stream_stream_rpc_method_handler(
        reflect, _make_parser(reflection_pb2.ServerReflectionRequest), _serialize
    )
    return tuple(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        for name in names
    )


def _describe_v1() -> None:
    """Add the description of `grpc.reflection.v1`, which the package lacks, to protobuf's pool."""
    pool = descriptor_pool.Default()
    name = reflection_pb2.DESCRIPTOR.name.replace("v1alpha", "v1")
    try:
        pool.FindFileByName(name)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        pool.Add(text_format.Parse(str(file).replace("v1alpha", "v1"), type(file)()))


async def _admit(gate: Gate, name: str, context: Context) -> Admission:
    if gate.is_open:
        return ANYBODY
    try:
        credentials = read_credentials(context)
        admission = await gate.admit(name, credentials)
        if admission is NOBODY:
            give_back = gate.public_calls.take(credentials)
            # Not at the method's end: an answer that nobody reads keeps the call longer.
            # (The package's types ask for a class.)
            context.add_done_callback(cast("Any", lambda _: give_back()))
    except WhenceError as error:
        await abort(context, error)
    return admission


@asynccontextmanager
async def _keep(gate: Gate, admission: Admission, context: Context) -> AsyncIterator[None]:
    """Run a call until its end, or until its credentials become invalid."""
    try:
        with gate.sessions.keep(admission):
            yield
    except WhenceError as error:
        await abort(context, error)


def _adapt_to_stream(method: Callable[[Any, Any], Awaitable[Any]], name: str, gate: Gate) -> Any:
    async def run(_messages: object, context: Context) -> Any:
        admission = await _admit(gate, name, context)
        async with _keep(gate, admission, context):
            return await method(await read_one_message(context), context)

    return run


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _make_parser(request_type: type[Message]) -> Any:
    def parse(raw: bytes) -> "Message | Malformed":
        try:
            return request_type.FromString(raw)
        except DecodeError as error:
            return Malformed(str(error))

    return parse


async def _refuse_malformed(request: Any, context: Any) -> None:
    if isinstance(request, Malformed):
        fault = f"the bytes are not a request: {request.reason}"
        await abort(context, InvalidRequestError(FieldViolation("", fault)))
