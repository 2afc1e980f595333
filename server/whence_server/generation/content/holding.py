"""Stopping of generations whose readers are behind, until these have read more.

The whole stream of a generation whose record holds less is in memory alone: unread entries cannot
be dropped. A generation that is full is taken out of the engine, and continues later after the
tokens that are recorded, as it does after the engine's death. Others go on meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from whence_server import logs
from whence_server.domain.decoding import Strategy
from whence_server.domain.engine import Engine, StopGeneration
from whence_server.domain.errors import Code
from whence_server.generation.content.held import HeldContents
from whence_server.generation.readmission import Readmission
from whence_server.generation.running import RunningGeneration
from whence_server.generation.upstream_running import UpstreamGeneration

_log = logging.getLogger(__name__)

# Steps that the engine made before it took note of the stop have arrived after this time.
_SHORTEST_STOP_S = 0.5


class Holding:
    """Holder of generations that wait for their readers.

    Args:
        running: the running generations by id.
        engine: told to stop a generation.
        readmission: admits generations again.
        contents: knows which generations are full.
        forget: called with each generation that fails.
    """

    def __init__(
        self,
        running: Mapping[str, RunningGeneration],
        engine: Engine,
        readmission: Readmission,
        contents: HeldContents,
        forget: Callable[[RunningGeneration], None],
    ) -> None:
        self._running = running
        self._engine = engine
        self._readmission = readmission
        self._contents = contents
        self._forget = forget
        self._stopped: dict[str, float] = {}
        """Time by the event loop's clock at which each generation was stopped."""
        contents.on_read = self._note_read

    def is_stopped(self, running: RunningGeneration) -> bool:
        """Return whether a generation waits for its reader: its steps are dropped meanwhile."""
        return running.id in self._stopped

    def stop_full(self) -> None:
        """Stop the generations that are full."""
        if not self._contents.full:
            return
        for generation_id in self._stopped.keys() - self._running.keys():
            del self._stopped[generation_id]
        for generation_id in list(self._contents.full):
            self._contents.full.discard(generation_id)
            # Its readers may have caught up while others were recorded: no read would resume it.
            if self._contents.has_room(generation_id):
                continue
            running = self._running.get(generation_id)
            if running is not None and not self.is_stopped(running):
                self._stop(running)

    def _stop(self, running: RunningGeneration) -> None:
        if isinstance(running, UpstreamGeneration):
            self._fail(running)
        # A beam search begins again from nothing; it has no step before its end, and few rounds.
        elif self._readmission.has_sent(running) and not _is_search(running):
            self._stopped[running.id] = asyncio.get_running_loop().time()
            running.was_stopped = True
            self._engine.send(StopGeneration(running.id))
            self._readmission.forget(running)
            extra = {logs.GENERATION_ID: running.id}
            _log.info("the generation waits until its caller has read more of it", extra=extra)

    def _fail(self, running: RunningGeneration) -> None:
        """Fail a generation of an upstream, which cannot be asked to wait."""
        self._engine.send(StopGeneration(running.id))
        running.fail(
            "CONTENT_NOT_READ",
            "the record of the generation keeps no content, and its caller is slow: the content "
            "that waits in memory has reached its bound",
            Code.RESOURCE_EXHAUSTED,
        )
        self._forget(running)

    def _note_read(self, generation_id: str) -> None:
        stopped = self._stopped.get(generation_id)
        if stopped is None or not self._contents.has_room(generation_id):
            return
        loop = asyncio.get_running_loop()
        loop.call_at(max(stopped + _SHORTEST_STOP_S, loop.time()), self._resume, generation_id)

    def _resume(self, generation_id: str) -> None:
        if self._stopped.pop(generation_id, None) is None:
            return
        running = self._running.get(generation_id)
        if running is not None and not running.done.is_set():
            self._readmission.admit(running)


def _is_search(running: RunningGeneration) -> bool:
    return running.started.decoding.strategy is Strategy.BEAM_SEARCH
