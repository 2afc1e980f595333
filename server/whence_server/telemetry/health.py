"""How the server is, for whoever asks over HTTP: a document, and never any content."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from whence_server.telemetry.export.courier import kind_of
from whence_server.telemetry.export.exporter import ExportHealth
from whence_server.telemetry.journal import Behind

SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"
"""The words of grpc.health.v1, whose answer this one agrees with."""
_MAX_ERROR_CHARACTERS = 200


class EngineHealth(Protocol):
    """The handle on the engine process."""

    @property
    def state(self) -> str:
        """What it is doing."""
        ...

    @property
    def num_restarts(self) -> int:
        """How often the process was started again."""
        ...


class GenerationsHealth(Protocol):
    """The generations, as they are right now."""

    @property
    def num_running(self) -> int:
        """Generations that have started and not ended."""
        ...

    @property
    def num_waiting_sequences(self) -> int:
        """Sequences whose prompt the engine has yet to read to its end."""
        ...


class HealthAnswer(NamedTuple):
    """One answer."""

    serving: bool
    body: bytes
    """JSON, in UTF-8."""


@dataclass(slots=True)
class Health:
    """Puts the document together of what is there. What is not there (yet) is left out.

    A destination that takes nothing does not make the server unhealthy: generations go on, and
    the journal keeps what is owed. The document says so, and by how much.

    Attributes:
        version: whence's own.
        is_serving: whether gRPC's health service says SERVING.
        is_draining: whether the server was told to stop.
        engine: the handle on the engine process.
        generations: set once the model is loaded.
        consumers: how far each of the journal's is behind, by its name.
        exports: those of them that send something away, by the same name.
        journal_trouble: why the journal cannot be written, as a reason for programs; "" if it can.
        hide_words: leave out what destinations say in their own words: where they get content,
            it may be in these.
    """

    version: str
    is_serving: Callable[[], bool] = lambda: False
    is_draining: Callable[[], bool] = lambda: False
    engine: EngineHealth | None = None
    generations: GenerationsHealth | None = None
    consumers: dict[str, Callable[[], Behind]] = field(default_factory=dict)
    exports: dict[str, Callable[[], ExportHealth]] = field(default_factory=dict)
    journal_trouble: Callable[[], str] = lambda: ""
    hide_words: bool = False

    def answer(self) -> HealthAnswer:
        """Says how things are."""
        serving = self.is_serving()
        return HealthAnswer(serving, json.dumps(self._document(serving), indent=2).encode())

    def _document(self, serving: bool) -> dict[str, Any]:
        document: dict[str, Any] = {
            "status": SERVING if serving else NOT_SERVING,
            "version": self.version,
            "draining": self.is_draining(),
        }
        if self.engine is not None:
            document["engine"] = {
                "state": str(self.engine.state),
                "restarts": self.engine.num_restarts,
            }
        if self.generations is not None:
            document["generations"] = {
                "running": self.generations.num_running,
                "sequences_waiting": self.generations.num_waiting_sequences,
            }
        if trouble := self.journal_trouble():
            document["journal"] = {"writable": False, "reason": trouble}
        document["consumers"] = {name: self._consumer(name) for name in self.consumers}
        return document

    def _consumer(self, name: str) -> dict[str, Any]:
        behind = self.consumers[name]()
        found: dict[str, Any] = {
            "entries_behind": behind.num_entries,
            "seconds_behind": round(behind.oldest_s, 3),
        }
        if name in self.exports:
            export = self.exports[name]()
            found |= {
                "retrying": export.retrying,
                "refusing": export.refusing,
                "last_error": self._shown(export.last_error),
                "exported": export.num_exported,
                "requests": export.num_requests,
                "retries": export.num_retries,
                "rejected": export.num_rejected,
                "set_aside": export.num_set_aside,
                "newest_set_aside": list(export.newest_set_aside),
                "unreadable": export.num_unreadable,
            }
        return found

    def _shown(self, error: str) -> str:
        """The error on one line, not too long; of one with hidden words, only its kind."""
        shown = kind_of(error) if self.hide_words else error
        return " ".join(shown.split())[:_MAX_ERROR_CHARACTERS]
