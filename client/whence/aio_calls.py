"""Calls over asyncio channels: unary calls, lists of pages, streams that resume."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from whence.aio_following import AsyncFollowing, is_cancelled
from whence.backoff import RetryPolicy
from whence.channel import make_channel_options
from whence.errors import FailedPreconditionError, UnavailableError
from whence.lifetime import Lifetime
from whence.propagation import Metadata, add_token, add_trace_context
from whence.readiness import LoadingWait
from whence.resume import Resumable
from whence.security import Server
from whence.status import convert_error
from whence.stubs import make_stream_methods
from whence.v1.audit_pb2_grpc import AuditServiceStub
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.model_pb2_grpc import ModelServiceStub
from whence.v1.proof_pb2_grpc import ProofServiceStub
from whence.v1.trace_pb2_grpc import TraceServiceStub
from whence.v1.training_pb2_grpc import TrainingServiceStub
from whence.v1.transparency_log_pb2_grpc import TransparencyLogServiceStub

if TYPE_CHECKING:
    from whence.v1.audit_pb2_grpc import AuditServiceAsyncStub
    from whence.v1.generation_pb2_grpc import GenerationServiceAsyncStub
    from whence.v1.model_pb2_grpc import ModelServiceAsyncStub
    from whence.v1.proof_pb2_grpc import ProofServiceAsyncStub
    from whence.v1.trace_pb2_grpc import TraceServiceAsyncStub
    from whence.v1.training_pb2_grpc import TrainingServiceAsyncStub
    from whence.v1.transparency_log_pb2_grpc import TransparencyLogServiceAsyncStub

Item = TypeVar("Item")
Page = TypeVar("Page", bound=Message)
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class AsyncCalls:
    """Two channels and their stubs; gRPC errors become `WhenceError`s here.

    The channels are opened by the first call, because they belong to its event loop. Streams that
    are followed have a connection of their own, as in `whence.calls.Calls`.

    Args:
        server: the server to connect to.
        metadata: metadata of every call, besides the current span's context.
        timeout_s: timeout of every call that is not a stream, in seconds.
        policy: bounds of the wait for a model that is loading.
    """

    def __init__(
        self,
        server: Server,
        metadata: Mapping[str, str] | None,
        timeout_s: float | None,
        policy: RetryPolicy,
    ) -> None:
        self._server = server
        self._metadata = dict(metadata or {})
        self._timeout_s = timeout_s
        self._policy = policy
        self._lifetime = Lifetime()
        self._connected: _Connections | None = None

    @property
    def generation(self) -> "GenerationServiceAsyncStub":
        """Stub of the generation service."""
        return self._connect().generation

    @property
    def trace(self) -> "TraceServiceAsyncStub":
        """Stub of the trace service."""
        return self._connect().trace

    @property
    def model(self) -> "ModelServiceAsyncStub":
        """Stub of the model service."""
        return self._connect().model

    @property
    def training(self) -> "TrainingServiceAsyncStub":
        """Stub of the training service."""
        return self._connect().training

    @property
    def audit(self) -> "AuditServiceAsyncStub":
        """Stub of the audit service."""
        return self._connect().audit

    @property
    def proof(self) -> "ProofServiceAsyncStub":
        """Stub of the proof service."""
        return self._connect().proof

    @property
    def transparency_log(self) -> "TransparencyLogServiceAsyncStub":
        """Stub of the transparency log's service."""
        return self._connect().transparency_log

    def _add_token(self, metadata: Metadata) -> Metadata:
        """Return metadata with the token, which may have been renewed since the last call."""
        return add_token(metadata, self._server.read_token())

    def _connect(self) -> "_Connections":
        """Return the channels of the running event loop.

        Raises:
            CallCancelledError: the client is closed.
            FailedPreconditionError: no event loop runs here, or not the one of earlier calls, or
                the process is a fork.
        """
        self._lifetime.check()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise FailedPreconditionError(
                "no event loop is running: call an AsyncClient in a coroutine", reason="NO_LOOP"
            ) from None
        connected = self._connected
        if connected is None or connected.loop.is_closed():
            connected = self._connected = _Connections(loop, self._server)
        elif connected.loop is not loop:
            raise FailedPreconditionError(
                "the AsyncClient made its first call in another event loop, which is still open: "
                "make one AsyncClient for each event loop",
                reason="CLIENT_OF_ANOTHER_LOOP",
            )
        return connected

    async def close(self) -> None:
        """Close the channels, which ends every call with CallCancelledError."""
        if self._lifetime.end() and self._connected is not None:
            await self._connected.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise the corresponding WhenceError for an error of gRPC, or of a closed client."""
        try:
            yield
        except grpc.RpcError as error:
            self._lifetime.check()
            raise convert_error(error) from error
        except grpc.aio.UsageError:  # gRPC's error for a call on a closed channel
            self._lifetime.check()
            raise
        except asyncio.CancelledError:
            # gRPC cancels the waiting task when the channel is closed.
            if not is_cancelled():
                self._lifetime.check()
            raise

    async def call_unary(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        *,
        timeout_s: float | None = None,
    ) -> ResponseT:
        """Call a unary method, again while its model is loading; return its response."""
        waiting = LoadingWait(self._policy, self._timeout_s if timeout_s is None else timeout_s)
        metadata = add_trace_context(self._metadata)
        while True:
            try:
                with self._translating():
                    return await method(
                        request, timeout=waiting.timeout_s, metadata=self._add_token(metadata)
                    )
            except UnavailableError as error:
                delay_s = waiting.choose_delay_s(error)
            await asyncio.sleep(delay_s)
            self._lifetime.check()

    async def list_pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, Page]", request: RequestT
    ) -> AsyncIterator[Page]:
        """Yield every page of a list; pages are fetched when needed."""
        listing: Any = request
        while True:
            page: Any = await self.call_unary(method, listing)
            yield page
            if not page.next_page_token:
                return
            listing.page_token = page.next_page_token

    def follow(
        self, stream: Resumable[Item], metadata: Mapping[str, str] | None = None
    ) -> AsyncFollowing[Item]:
        """Start a stream, over as many calls as it needs."""
        # Computed once: calls that resume the stream have the same parent span.
        both = add_trace_context({**self._metadata, **(metadata or {})})

        def call() -> Any:
            request, timeout_s = stream.prepare_call()
            method = self._connect().streams[type(request)]
            with self._translating():
                return method(request, timeout=timeout_s, metadata=self._add_token(both))

        return AsyncFollowing(stream, call, self._lifetime)


class _Connections:
    """Channels of one event loop, with their stubs.

    Raises:
        FailedPreconditionError: the process was forked from one that used grpc.aio.
    """

    _process_id: ClassVar[int | None] = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Server,
    ) -> None:
        self._check_process()
        self.loop = loop
        followed, others = (_open_channel(server) for _ in range(2))
        self._channels = (followed, others)
        self.streams: dict[type[Message], Callable[..., Any]] = make_stream_methods(
            followed, others
        )
        self.generation = cast("GenerationServiceAsyncStub", GenerationServiceStub(others))
        self.trace = cast("TraceServiceAsyncStub", TraceServiceStub(others))
        self.model = cast("ModelServiceAsyncStub", ModelServiceStub(others))
        self.training = cast("TrainingServiceAsyncStub", TrainingServiceStub(others))
        self.audit = cast("AuditServiceAsyncStub", AuditServiceStub(others))
        self.proof = cast("ProofServiceAsyncStub", ProofServiceStub(others))
        self.transparency_log = cast(
            "TransparencyLogServiceAsyncStub", TransparencyLogServiceStub(others)
        )

    @classmethod
    def _check_process(cls) -> None:
        cls._process_id = cls._process_id or os.getpid()
        if cls._process_id != os.getpid():
            raise FailedPreconditionError(
                f"process {os.getpid()} was forked from process {cls._process_id}, which had used "
                "gRPC's asyncio API, which hangs in a fork: start processes with "
                "multiprocessing's `spawn`",
                reason="CLIENT_OF_ANOTHER_PROCESS",
            )

    async def close(self) -> None:
        """Close the channels."""
        if not self.loop.is_closed():
            for channel in self._channels:
                await channel.close()


def _open_channel(server: Server) -> grpc.aio.Channel:
    options = make_channel_options(server.address)
    if server.credentials is None:
        return grpc.aio.insecure_channel(server.address, options)
    return grpc.aio.secure_channel(server.address, server.credentials, options)
