"""Calls over synchronous channels: unary calls, lists of pages, streams that resume."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from whence.backoff import RetryPolicy
from whence.channel import make_channel_options
from whence.errors import UnavailableError
from whence.following import Following
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

Item = TypeVar("Item")
Page = TypeVar("Page", bound=Message)
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class Calls:
    """Two channels and their stubs; gRPC errors become `WhenceError`s here.

    A connection carries a limited number of calls (behind nginx 128). Streams that are followed
    have a connection of their own, so that they never keep the other calls waiting.

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
        self._read_token = server.read_token
        self._followed_channel = _open_channel(server)
        self._channel = _open_channel(server)
        self._metadata = dict(metadata or {})
        self._timeout_s = timeout_s
        self._policy = policy
        self._lifetime = Lifetime()
        self.generation = GenerationServiceStub(self._channel)
        self.trace = TraceServiceStub(self._channel)
        self.model = ModelServiceStub(self._channel)
        self.training = TrainingServiceStub(self._channel)
        self.audit = AuditServiceStub(self._channel)
        self.proof = ProofServiceStub(self._channel)
        self.transparency_log = TransparencyLogServiceStub(self._channel)
        self._streams = make_stream_methods(self._followed_channel, self._channel)

    def close(self) -> None:
        """Close the channels, which ends every call with CallCancelledError."""
        if self._lifetime.end():
            self._followed_channel.close()
            self._channel.close()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise the corresponding WhenceError for an error of gRPC, or of a closed client."""
        self._lifetime.check()
        try:
            yield
        except grpc.RpcError as error:
            self._lifetime.check()
            raise convert_error(error) from error
        except ValueError:  # gRPC's error for a call on a closed channel
            self._lifetime.check()
            raise

    def _add_token(self, metadata: Metadata) -> Metadata:
        """Return metadata with the token, which may have been renewed since the last call."""
        return add_token(metadata, self._read_token())

    def call_unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
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
                    return method(
                        request, timeout=waiting.timeout_s, metadata=self._add_token(metadata)
                    )
            except UnavailableError as error:
                delay_s = waiting.choose_delay_s(error)
            time.sleep(delay_s)

    def list_pages(
        self, method: "grpc.UnaryUnaryMultiCallable[RequestT, Page]", request: RequestT
    ) -> Iterator[Page]:
        """Yield every page of a list; pages are fetched when needed."""
        listing: Any = request
        while True:
            page: Any = self.call_unary(method, listing)
            yield page
            if not page.next_page_token:
                return
            listing.page_token = page.next_page_token

    def follow(
        self, stream: Resumable[Item], metadata: Mapping[str, str] | None = None
    ) -> Following[Item]:
        """Start a stream, over as many calls as it needs."""
        # Computed once: calls that resume the stream have the same parent span.
        both = add_trace_context({**self._metadata, **(metadata or {})})

        def call() -> grpc.Call:
            request, timeout_s = stream.prepare_call()
            with self._translating():
                started: grpc.Call = self._streams[type(request)](
                    request, timeout=timeout_s, metadata=self._add_token(both)
                )
            return started

        return Following(stream, call, self._lifetime)


def _open_channel(server: Server) -> grpc.Channel:
    options = make_channel_options(server.address)
    if server.credentials is None:
        return grpc.insecure_channel(server.address, options)
    return grpc.secure_channel(server.address, server.credentials, options)
