"""How the server is, for whoever asks over HTTP: a document, and never any content."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whence_server.telemetry.export.stats import error_kind
from whence_server.telemetry.live import Consumer, Consumers, LiveServer

SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"
"""The words of grpc.health.v1, whose answer this one agrees with."""
_MAX_ERROR_CHARACTERS = 200


class HealthAnswer(NamedTuple):
    """One answer."""

    serving: bool
    body: bytes
    """JSON, in UTF-8."""


@dataclass(frozen=True, slots=True)
class Health:
    """Puts the document together of the parts that run. A part that does not is left out.

    A destination that takes nothing does not make the server unhealthy: generations go on, and
    the journal keeps what is owed. The document says so, and by how much.

    Attributes:
        version: whence's own.
        live: the running server.
        consumers: the followers of the journal, by name.
        hide_words: leave out what destinations say in their own words: where they get content,
            it may be in these.
    """

    version: str
    live: LiveServer
    consumers: Consumers = field(default_factory=dict)
    hide_words: bool = False

    def answer(self) -> HealthAnswer:
        """Return the document as it is now."""
        serving = self.live.is_serving
        return HealthAnswer(serving, json.dumps(self._document(serving), indent=2).encode())

    def _document(self, serving: bool) -> dict[str, Any]:
        live = self.live
        document: dict[str, Any] = {
            "status": SERVING if serving else NOT_SERVING,
            "version": self.version,
            "draining": live.is_draining,
        }
        if live.engine is not None:
            document["engine"] = {"state": str(live.engine.state), "restarts": live.num_restarts}
        if live.generations is not None:
            document["generations"] = {
                "running": live.generations.num_running,
                "sequences_waiting": live.generations.num_waiting_sequences,
            }
        if trouble := live.journal.trouble:
            document["journal"] = {"writable": False, "reason": trouble.reason}
        document["consumers"] = {
            name: self._consumer(consumer) for name, consumer in self.consumers.items()
        }
        return document

    def _consumer(self, consumer: Consumer) -> dict[str, Any]:
        lag, export = consumer.lag(), consumer.export
        found: dict[str, Any] = {
            "entries_behind": lag.num_entries,
            "seconds_behind": round(lag.oldest_s, 3),
        }
        if export is not None:
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
        """Return the error on one line, not too long; with hidden words, only its kind."""
        shown = error_kind(error) if self.hide_words else error
        return " ".join(shown.split())[:_MAX_ERROR_CHARACTERS]
