"""Health document that the server shows over HTTP; it never holds content of generations."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from whence_server.telemetry.export.stats import get_error_kind
from whence_server.telemetry.live import Consumer, Consumers, LiveServer

SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"
"""Status names of grpc.health.v1; both services report the same status."""
_MAX_ERROR_CHARACTERS = 200


class HealthAnswer(NamedTuple):
    """Answer to one health request."""

    serving: bool
    body: bytes
    """JSON, in UTF-8."""


@dataclass(frozen=True, slots=True)
class Health:
    """Builder of the health document; parts of the server that do not run yet are left out.

    A destination that accepts nothing does not make the server unhealthy: generations continue,
    and the journal keeps the entries to be sent. The document shows how many there are.

    Attributes:
        version: version of whence.
        live: the running server.
        consumers: followers of the journal, by name.
        hide_words: show only the kind of a destination's error, because its text may repeat
            content that was sent.
    """

    version: str
    live: LiveServer
    consumers: Consumers = field(default_factory=dict)
    hide_words: bool = False

    def answer(self) -> HealthAnswer:
        """Return the current document."""
        serving = self.live.is_serving
        return HealthAnswer(serving, json.dumps(self._make_document(serving), indent=2).encode())

    def _make_document(self, serving: bool) -> dict[str, Any]:
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
                "unrecorded": live.generations.num_unrecorded,
            }
        if trouble := live.journal.trouble:
            document["journal"] = {"writable": False, "reason": trouble.reason}
        document["consumers"] = {
            name: self._describe_consumer(consumer) for name, consumer in self.consumers.items()
        }
        return document

    def _describe_consumer(self, consumer: Consumer) -> dict[str, Any]:
        lag, export = consumer.lag(), consumer.export
        found: dict[str, Any] = {
            "entries_behind": lag.num_entries,
            "seconds_behind": round(lag.oldest_s, 3),
        }
        if export is not None:
            found |= {
                "retrying": export.retrying,
                "refusing": export.refusing,
                "last_error": self._redact(export.last_error),
                "exported": export.num_exported,
                "requests": export.num_requests,
                "retries": export.num_retries,
                "rejected": export.num_rejected,
                "set_aside": export.num_set_aside,
                "newest_set_aside": list(export.newest_set_aside),
                "unreadable": export.num_unreadable,
            }
        return found

    def _redact(self, error: str) -> str:
        """Return an error on one line, shortened; with `hide_words`, only its kind."""
        shown = get_error_kind(error) if self.hide_words else error
        return " ".join(shown.split())[:_MAX_ERROR_CHARACTERS]
