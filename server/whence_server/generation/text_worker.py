"""The text process: `python -m whence_server.generation.text_worker FD`.

It renders chat templates (the model's code on the caller's data) and tokenizes. Both may run long
or never end, and hold the GIL meanwhile, so they run in a process that can be killed.

FD is the process's end of a socket pair, inherited from the front. The first message is a `Setup`,
which READY answers. Each `GenerationRequest` is answered by a `Prepared` or by the error to raise.
The front sends nothing while it waits for an answer, so that any event on the socket then means
that the front has closed it: the kernel ends this process with SIGIO, even while it holds the GIL.

The kernel's timers limit CPU time: SIGVTALRM ends a chat template that runs too long, SIGPROF a
request as a whole. SIGALRM ends the compilation of a constraint, by the clock on the wall.
RLIMIT_AS limits memory.
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

from whence_server.domain.chat import ChatMessage
from whence_server.domain.constraints import Constraint
from whence_server.domain.errors import FieldViolation, InvalidRequestError, WhenceError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.prepare import Prepared, name_input_field
from whence_server.generation.upstream_prepare import prepare_for_engine
from whence_server.processes import channel
from whence_server.text.chat import RenderedChat
from whence_server.text.tokenizer import TextEncoder

READY = "ready"
TEMPLATE_OVERTIME, TEXT_OVERTIME = signal.SIGVTALRM, signal.SIGPROF
CONSTRAINT_OVERTIME = signal.SIGALRM
"""Signals that end this process when a time limit is exceeded."""

USUAL_BYTES = 4 << 20
"""Size up to which a request's time limit is `Limits.max_text_s`."""

_MEMORY_PER_BYTE = 512
"""Memory allowed for each byte of a tokenized text; the tokenizer's lists were measured at 350."""

_KEPT_MEMORY_BYTES = 128 << 20
"""Memory kept after a request beyond which the process exits, to be replaced by a new one."""


class Setup(NamedTuple):
    """First message to a text process."""

    model: ModelInfo
    limits: Limits


def main(descriptor: int) -> int:
    """Serve the front at the other end of the socket until it closes."""
    # The front alone handles a Ctrl-C in its terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Callers' data must not be left in core files.
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
            return prepare_for_engine(request, model=setup.model, limits=limits, tokenizer=encoder)
    except WhenceError as error:
        return error
    except MemoryError:
        description = f"needs more than {memory_bytes >> 20} MiB of memory to tokenize"
        return InvalidRequestError(FieldViolation(name_input_field(request), description))


def compute_text_seconds(request: GenerationRequest, limits: Limits) -> float:
    """Return the CPU time limit, in seconds, for preparing a request's text."""
    return limits.max_text_s * max(1.0, request.size_bytes / USUAL_BYTES)


class _BoundedEncoder(TextEncoder):
    """Encoder that renders chat templates under their own time and memory limits."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.model.text)
        self._limits = setup.limits

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        template_arguments: Mapping[str, object],
        template_name: str = "",
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> RenderedChat:
        limits = self._limits
        with (
            _limit_time(signal.ITIMER_VIRTUAL, limits.max_template_s),
            _limit_memory(limits.max_template_memory_bytes),
        ):
            return super().render_chat(messages, template_arguments, template_name, tools)

    def check_constraint(
        self, constraint: Constraint, vocabulary_size: int, given: Sequence[int] = ()
    ) -> None:
        limits = self._limits
        self._load_compiler(vocabulary_size)  # once, and not at the expense of this constraint
        with (
            _limit_time(signal.ITIMER_REAL, limits.max_constraint_s),
            _limit_memory(limits.max_constraint_memory_bytes),
        ):
            super().check_constraint(constraint, vocabulary_size, given)


@contextmanager
def _limit_time(timer: int, seconds: float) -> Iterator[None]:
    """Have the kernel end this process after `seconds` of the timer's kind of time."""
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


@contextmanager
def _limit_memory(further_bytes: int) -> Iterator[None]:
    """Make allocations fail beyond `further_bytes` more than are in use now."""
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
    """Return the address space in use, as RLIMIT_AS counts it; 0 if it is not known."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


@contextmanager
def _end_with_the_front(connection: socket.socket) -> Iterator[None]:
    """Have the kernel end this process when the front closes the socket, or exits."""
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
