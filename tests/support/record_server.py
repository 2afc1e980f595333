"""A server without a model, in a thread of the test's process: it records, lists and replays."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar

from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from server_process import socket_target

from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.generation.recording.recorders import Recorders
from whence_server.generation.recovery import close_interrupted
from whence_server.journal.codec import encode_call
from whence_server.journal.journal import Journal
from whence_server.journal.recorded_vocabularies import RecordedVocabularies
from whence_server.journal.vocabularies import Vocabularies
from whence_server.rpc import generation_servicer, record_servicer, trace_servicer
from whence_server.rpc.calls import CallLog
from whence_server.rpc.generation_servicer import GenerationServicer
from whence_server.rpc.record_servicer import RecordServicer
from whence_server.rpc.server import ServerOptions, build_server
from whence_server.rpc.serving import Serving
from whence_server.rpc.trace_servicer import TraceServicer

T = TypeVar("T")


class RecordServer:
    """The server, which can be stopped and started again on the same journal.

    Attributes:
        target: its address.
        served: the model that it would serve; its identity is known to recorders' models.
        taken: ids of generations that it would serve unrecorded, or that are starting.
    """

    def __init__(
        self, directory: Path, gate: Gate = OPEN_GATE, *, max_generations: int = 0
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.target = socket_target(directory)
        self.served: ModelInfo | None = None
        self.taken: set[str] = set()
        self._directory = directory
        self._gate = gate
        self._max_generations = max_generations
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._parts: Any = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop, and return its result."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    def start(self) -> None:
        """Open the journal and the port."""
        self._parts = self.run(self._start())

    async def _start(self) -> Any:
        journal = await Journal.open(self._directory / "data")
        await close_interrupted(journal)
        limits, closing = Limits(), asyncio.Event()
        serving = Serving("none", journal)

        async def link(_: ModelInfo) -> None:
            return None

        vocabularies = Vocabularies(self._directory / "data")
        recorders = Recorders(
            journal,
            RecordedVocabularies(vocabularies, self._directory / "data"),
            lambda: self.served,
            link,
            is_taken=lambda generation_id: generation_id in self.taken,
            max_generations=self._max_generations,
        )
        calls = CallLog(lambda call: journal.record_call(call.generation_id, encode_call(call)))
        record = RecordServicer(recorders, journal, limits, DEFAULT_ON)
        rpc = await build_server(
            ServerOptions(listen=(self.target,)),
            {
                record_servicer.SERVICE: record.list_methods(),
                trace_servicer.SERVICE: TraceServicer(journal, closing).list_methods(),
                generation_servicer.SERVICE: GenerationServicer(serving, limits).list_methods(),
            },
            calls,
            self._gate,
        )
        await rpc.server.start()
        return journal, recorders, rpc, closing

    @property
    def journal(self) -> Journal:
        """The open journal."""
        journal: Journal = self._parts[0]
        return journal

    @property
    def recorders(self) -> Recorders:
        """The recorders that it knows."""
        recorders: Recorders = self._parts[1]
        return recorders

    def stop(self) -> None:
        """Stop the server; batches that run end as interrupted."""
        if self._parts is not None:
            self.run(self._stop())
            self._parts = None

    async def _stop(self) -> None:
        journal, recorders, rpc, closing = self._parts
        closing.set()
        await rpc.stop(0)
        recorders.close()
        await journal.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()
