"""The text process: `python -m whence_server.generation.text_worker FD`.

It runs what may take long or never end, and what holds the interpreter's lock meanwhile: chat
templates, which are the model's code on the caller's data, and tokenizing. It can be killed.

FD is its end of a socket pair, inherited from the front. The first message is a `Setup`; READY
answers it. Then each `GenerationRequest` is answered by a `Prepared` or by the error to raise. The
front sends nothing while it waits for an answer, so that anything that then happens on the socket
is its end: the kernel ends this process with SIGIO, even while it holds the interpreter's lock.

The kernel's timers bound the processor time: SIGVTALRM ends a chat template that goes on too
long, SIGPROF a request as a whole. Memory is bounded by RLIMIT_AS.
"""

import fcntl
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from whence_server.domain.errors import FieldViolation, InvalidRequestError, WhenceError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import ChatMessage, GenerationRequest
from whence_server.generation.prepare import Prepared, name_input_field, prepare_request
from whence_server.processes import channel
from whence_server.text.tokenizer import TextEncoder

READY = "ready"
TEMPLATE_OVERTIME, TEXT_OVERTIME = signal.SIGVTALRM, signal.SIGPROF
"""Signals that end this process when a time limit is passed."""

USUAL_BYTES = 4 << 20
"""Up to this size, a request's time limit is `Limits.max_text_s`."""

_MEMORY_PER_BYTE = 512
"""Of a text that is tokenized: the tokenizer's own lists took 350 bytes for each."""

_KEPT_MEMORY_BYTES = 128 << 20
"""A process that has kept more than this after a request ends, and another takes its place."""


class Setup(NamedTuple):
    """What a text process has to know from the start."""

    model: ModelInfo
    limits: Limits


def main(descriptor: int) -> int:
    """Serve the front at the other end of the socket until it closes."""
    # The front decides when to end: a Ctrl-C in its terminal is for it alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a caller sent is not to lie about in a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=descriptor)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    with suppress(EOFError, OSError):
        setup: Setup = channel.receive(connection)
        _serve(setup, connection)
    return 0


def _serve(setup: Setup, connection: socket.socket) -> None:
    encoder = _BoundedEncoder(setup)
    idle_bytes = _read_memory_bytes()
    connection.sendall(channel.encode(READY))
    while _read_memory_bytes() <= idle_bytes + _KEPT_MEMORY_BYTES:
        request: GenerationRequest = channel.receive(connection)
        with _end_with_the_front(connection):
            answer = channel.encode(_answer(request, setup, encoder))
        connection.sendall(answer)


def _answer(
    request: GenerationRequest, setup: Setup, encoder: "_BoundedEncoder"
) -> Prepared | WhenceError:
    limits = setup.limits
    memory_bytes = limits.max_template_memory_bytes + _MEMORY_PER_BYTE * request.size_bytes
    seconds = compute_text_seconds(request, limits)
    try:
        with _limit_time(signal.ITIMER_PROF, seconds), _limit_memory(memory_bytes):
            return prepare_request(request, model=setup.model, limits=limits, tokenizer=encoder)
    except WhenceError as error:
        return error
    except MemoryError:
        description = f"needs more than {memory_bytes >> 20} MiB of memory to be made into tokens"
        return InvalidRequestError(FieldViolation(name_input_field(request), description))


def compute_text_seconds(request: GenerationRequest, limits: Limits) -> float:
    """Return the processor time that a request's text may take."""
    return limits.max_text_s * max(1.0, request.size_bytes / USUAL_BYTES)


class _BoundedEncoder(TextEncoder):
    """Renders chat templates within their own limits."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.model.text)
        self._limits = setup.limits

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        template_arguments: Mapping[str, object],
        template_name: str = "",
    ) -> str:
        limits = self._limits
        with (
            _limit_time(signal.ITIMER_VIRTUAL, limits.max_template_s),
            _limit_memory(limits.max_template_memory_bytes),
        ):
            return super().render_chat(messages, template_arguments, template_name)


@contextmanager
def _limit_time(timer: int, seconds: float) -> Iterator[None]:
    """Have the kernel end this process once it has computed for so long."""
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


@contextmanager
def _limit_memory(further_bytes: int) -> Iterator[None]:
    """Have allocations fail beyond what is in use now and so many bytes more."""
    in_use = _read_memory_bytes()
    if not in_use:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = in_use + further_bytes
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _read_memory_bytes() -> int:
    """The address space in use, which is what RLIMIT_AS counts; 0 where it is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


@contextmanager
def _end_with_the_front(connection: socket.socket) -> Iterator[None]:
    """Have the kernel end this process when the front closes the socket, or ends."""
    flags: int = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        if select.select([connection], [], [], 0)[0]:
            raise EOFError("the front has gone")
        yield
    finally:
        fcntl.fcntl(connection, fcntl.F_SETFL, flags)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
