"""Calls over a synchronous channel: unary calls, lists of pages, streams that resume."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from whence.channel import make_channel_options, resolve_target
from whence.errors import WhenceError
from whence.propagation import add_trace_context
from whence.resume import Resumable
from whence.status import convert_error, translate_errors
from whence.v1.generation_pb2 import GenerateRequest, ResumeGenerationRequest
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.model_pb2 import GetVocabularyRequest
from whence.v1.model_pb2_grpc import ModelServiceStub
from whence.v1.trace_pb2 import WatchGenerationsRequest
from whence.v1.trace_pb2_grpc import TraceServiceStub
from whence.v1.training_pb2 import WatchTrainingRunRequest
from whence.v1.training_pb2_grpc import TrainingServiceStub

Item = TypeVar("Item")
Page = TypeVar("Page", bound=Message)
RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


class Calls:
    """A channel and its stubs; gRPC errors become `WhenceError`s here.

    Args:
        target: target of `whence.channel.resolve_target`.
        credentials: credentials for TLS; None for plaintext.
        metadata: metadata of every call, besides the current span's context.
        timeout_s: timeout of every call that is not a stream, in seconds.
    """

    def __init__(
        self,
        target: str | None,
        credentials: grpc.ChannelCredentials | None,
        metadata: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> None:
        address = resolve_target(target)
        options = make_channel_options(address)
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._metadata = dict(metadata or {})
        self._timeout_s = timeout_s
        self.generation = GenerationServiceStub(self._channel)
        self.trace = TraceServiceStub(self._channel)
        self.model = ModelServiceStub(self._channel)
        self.training = TrainingServiceStub(self._channel)
        self._streams: dict[type[Message], Callable[..., Any]] = {
            GenerateRequest: self.generation.Generate,
            ResumeGenerationRequest: self.generation.ResumeGeneration,
            WatchGenerationsRequest: self.trace.WatchGenerations,
            WatchTrainingRunRequest: self.training.WatchTrainingRun,
            GetVocabularyRequest: self.model.GetVocabulary,
        }

    def close(self) -> None:
        """Close the channel, which ends every call."""
        self._channel.close()

    def call_unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        *,
        timeout_s: float | None = None,
    ) -> ResponseT:
        """Call a unary method; return its response."""
        with translate_errors():
            return method(
                request,
                timeout=self._timeout_s if timeout_s is None else timeout_s,
                metadata=add_trace_context(self._metadata),
            )

    def stream(
        self,
        method: "grpc.UnaryStreamMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        *,
        is_timed: bool = True,
    ) -> Iterator[ResponseT]:
        """Yield the responses of a stream that is not resumed.

        Closing the generator before its end cancels the call.
        """
        with translate_errors():
            call = method(
                request,
                timeout=self._timeout_s if is_timed else None,
                metadata=add_trace_context(self._metadata),
            )
            try:
                yield from call
            finally:
                call.cancel()

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
    ) -> "Following[Item]":
        """Start a stream that resumes after a broken connection."""
        # Computed once: calls that resume the stream have the same parent span.
        both = add_trace_context({**self._metadata, **(metadata or {})})

        def call() -> grpc.Call:
            request, timeout_s = stream.prepare_call()
            started: grpc.Call = self._streams[type(request)](
                request, timeout=timeout_s, metadata=both
            )
            return started

        return Following(stream, call)


class Following(Generic[Item]):
    """Items of a resumable stream, over as many calls as needed.

    An iterator and a context manager; `close` may be called from another thread, and ends
    the iteration.
    """

    def __init__(self, stream: Resumable[Item], call: Callable[[], Any]) -> None:
        self._stream = stream
        self._start = call
        self._call = call()
        self._closed = threading.Event()

    def __enter__(self) -> "Following[Item]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        while not self._closed.is_set():
            error: WhenceError | None = None
            try:
                for response in self._call:
                    item = self._stream.receive(response)
                    if item is not None:
                        return item
            except grpc.RpcError as rpc_error:
                error = convert_error(rpc_error)
            # A complete stream is read to its end, so that the call ends with OK.
            if self._has_ended():
                break
            delay_s = self._stream.handle_break(error)
            if self._has_ended():
                break
            self._closed.wait(delay_s)
            if not self._closed.is_set():
                self._call = self._start()
        raise StopIteration

    def _has_ended(self) -> bool:
        return self._stream.complete or self._closed.is_set()

    def close(self) -> None:
        """Stop reading, and cancel the call."""
        self._closed.set()
        self._call.cancel()
