"""Connection of a recorder with the server: it sends, resends after a break, and reads answers."""

import logging
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from whence.channel import make_channel_options
from whence.errors import WhenceError
from whence.propagation import add_token
from whence.security import Server
from whence.v1.record_pb2 import (
    RecordedModel,
    RecorderHello,
    RecordGenerationsRequest,
    RecordGenerationsResponse,
    TokenizerPart,
)
from whence.v1.record_pb2_grpc import RecordServiceStub
from whence_hooks.outbox import Outbox

_log = logging.getLogger("whence_hooks")

_PART_BYTES = 1 << 20
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_RANDOM = secrets.SystemRandom()


class SentModel:
    """A model as the server is told of it, with the tokenizer that it may ask for."""

    def __init__(self, description: RecordedModel, tokenizer: bytes) -> None:
        self.description = description
        self.tokenizer = tokenizer


class Connection:
    """Thread that keeps a call of RecordGenerations open until it is closed.

    Args:
        server: the server to connect to.
        hello: identity of the recorder.
        outbox: the numbered messages.
        models: models by their numbers; the recorder adds to it before it adds a batch.
    """

    def __init__(
        self, server: Server, hello: RecorderHello, outbox: Outbox, models: dict[int, SentModel]
    ) -> None:
        self._server = server
        self._hello = hello
        self._outbox = outbox
        self._models = models
        self._closed = threading.Event()
        self._is_broken = False
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="whence-record", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the call and wait for the thread."""
        self._closed.set()
        call = self._call
        with self._outbox.changed:
            self._outbox.changed.notify_all()
        if call is not None:
            call.cancel()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        bound_s = _FIRST_DELAY_S
        while not self._closed.is_set():
            attempt = _Attempt(self._hello, self._outbox, self._models, self._closed)
            try:
                self._connect(attempt)
            except grpc.RpcError as error:
                if _is_refusal(error):
                    self._give_up(error)
                    return
                self._note_broken(_describe(error))
            except WhenceError as error:  # the file of the token cannot be read at present
                self._note_broken(error.message)
            except Exception:  # noqa: BLE001 - the thread tries again, whatever failed
                _log.exception("the connection with the whence server failed")
            if attempt.was_answered:
                bound_s = _FIRST_DELAY_S
            self._closed.wait(_RANDOM.random() * bound_s)
            bound_s = min(bound_s * 2, _LONGEST_DELAY_S)

    def _connect(self, attempt: "_Attempt") -> None:
        metadata = add_token((), self._server.read_token())
        with self._open_channel() as channel:
            call = self._call = RecordServiceStub(channel).RecordGenerations(
                attempt.make_requests(), metadata=metadata
            )
            if self._closed.is_set():
                call.cancel()
            try:
                for response in call:
                    self._note_answer(attempt, response)
            finally:
                attempt.end()
                self._call = None

    def _open_channel(self) -> grpc.Channel:
        address, credentials = self._server.address, self._server.credentials
        options = make_channel_options(address)
        if credentials is None:
            return grpc.insecure_channel(address, options)
        return grpc.secure_channel(address, credentials, options)

    def _note_answer(self, attempt: "_Attempt", response: RecordGenerationsResponse) -> None:
        if self._is_broken:
            _log.warning("the whence server at %s answers again", self._server.address)
            self._is_broken = False
        for refused in response.refused:
            failure = refused.failure
            _log.warning(
                "the whence server records batch %d no further: %s: %s",
                refused.batch_number,
                failure.reason,
                failure.message,
            )
        attempt.note(response)

    def _give_up(self, error: grpc.RpcError) -> None:
        """Send nothing any more: the server would refuse it every time."""
        if self._closed.is_set():
            return
        _log.warning(
            "the whence server at %s refuses the recorder (%s: %s): generations go on, and none is "
            "put on record any more",
            self._server.address,
            error.code().name,
            _describe(error),
        )
        self._outbox.refuse("the whence server refuses the recorder")

    def _note_broken(self, detail: object) -> None:
        if not self._is_broken and not self._closed.is_set():
            self._is_broken = True
            _log.warning(
                "the whence server at %s does not answer (%s): generations go on, and their "
                "record is buffered",
                self._server.address,
                detail,
            )


_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""Statuses that a server would answer every time."""


def _is_refusal(error: grpc.RpcError) -> bool:
    return getattr(error, "code", lambda: None)() in _REFUSALS


def _describe(error: grpc.RpcError) -> object:
    return getattr(error, "details", lambda: error)()


class _Attempt:
    """One call: the messages to send, by what the server has answered in it."""

    def __init__(
        self,
        hello: RecorderHello,
        outbox: Outbox,
        models: dict[int, SentModel],
        closed: threading.Event,
    ) -> None:
        self._hello = hello
        self._outbox = outbox
        self._models = models
        self._closed = closed
        self._next_number: int | None = None
        self._ready_models: set[int] = set()
        self._wanted = ""
        self._is_over = False

    @property
    def was_answered(self) -> bool:
        """True if the server has answered the hello."""
        return self._next_number is not None

    def note(self, response: RecordGenerationsResponse) -> None:
        """Take an answer of the server."""
        self._outbox.acknowledge(response.recorded_number)
        with self._outbox.changed:
            if self._next_number is None:
                self._next_number = response.recorded_number + 1
            self._ready_models.update(response.ready_model_numbers)
            self._wanted = response.wanted_tokenizer or self._wanted
            self._outbox.changed.notify_all()

    def end(self) -> None:
        """End the requests of a call that has ended."""
        with self._outbox.changed:
            self._is_over = True
            self._outbox.changed.notify_all()

    def make_requests(self) -> Iterator[RecordGenerationsRequest]:
        """Yield the requests; gRPC reads them in a thread of its own."""
        self._hello.first_number = self._outbox.first_number
        yield RecordGenerationsRequest(hello=self._hello)
        if not self._wait(lambda: self._next_number is not None):
            return
        while self._wait(self._has_message):
            with self._outbox.changed:
                message = self._outbox.find(self._next_number or 1)
            if message is None:
                continue
            if message.model_number and message.model_number not in self._ready_models:
                yield from self._introduce(message.model_number)
            yield message.content
            self._next_number = message.number + 1

    def _introduce(self, model_number: int) -> Iterator[RecordGenerationsRequest]:
        """Yield the model, and its tokenizer if the server asks for it; wait until it is ready."""
        model = self._models[model_number]
        yield RecordGenerationsRequest(model=model.description)
        sha256 = model.description.tokenizer_sha256
        if not self._wait(lambda: model_number in self._ready_models or self._wanted == sha256):
            return
        if model_number in self._ready_models:
            return
        self._wanted = ""
        for begin in range(0, len(model.tokenizer), _PART_BYTES):
            content = model.tokenizer[begin : begin + _PART_BYTES]
            yield RecordGenerationsRequest(tokenizer=TokenizerPart(sha256=sha256, content=content))
        self._wait(lambda: model_number in self._ready_models)

    def _has_message(self) -> bool:
        return self._outbox.find(self._next_number or 1) is not None

    def _wait(self, is_true: Any) -> bool:
        """Wait for a condition; return False if the call or the recorder has ended first."""
        with self._outbox.changed:
            self._outbox.changed.wait_for(
                lambda: self._is_over or self._closed.is_set() or is_true()
            )
            return not (self._is_over or self._closed.is_set())
