"""Health document: its fields, and the content that it never holds."""

import json
from typing import Any

import pytest
from metrics_parts import Engine, Files, Generations

from whence_server.domain.errors import JournalError
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.health import Health
from whence_server.telemetry.lag import Lag
from whence_server.telemetry.live import Consumer, Consumers, LiveServer

SECRET = "zanzibar quokka"


class JournalFullError(JournalError):
    reason = "JOURNAL_FULL"


def live_server(trouble: JournalError | None = None) -> LiveServer:
    return LiveServer(Files(trouble=trouble), 4096)


def exporting(last_error: str) -> Consumers:
    """Return the consumer of a span export that is 42 entries behind."""
    stats = ExportStats(
        num_exported=1_000,
        num_requests=12,
        num_retries=5,
        num_rejected=6,
        num_set_aside=7,
        num_unreadable=8,
        retrying=True,
        refusing=True,
        last_error=last_error,
    )
    stats.newest_set_aside.append("span 01 (decode_step) of trace 02")
    return {"otlp-spans": Consumer(lambda: Lag(42, 1.23456), stats)}


def document(health: Health) -> dict[str, Any]:
    answer = health.answer()
    found = json.loads(answer.body)
    assert found["status"] == ("SERVING" if answer.serving else "NOT_SERVING")
    return found


def test_health_before_the_engine_starts_is_not_serving():
    health = Health("9.8.7", live_server())
    assert document(health) == {
        "status": "NOT_SERVING",
        "version": "9.8.7",
        "draining": False,
        "consumers": {},
    }


def test_health_shows_the_lag_of_each_consumer():
    live = live_server()
    live.show_start(Engine(), is_serving=lambda: True, is_draining=lambda: False)
    live.show_generations(Generations())
    consumers = {
        "metrics": Consumer(lambda: Lag(0, 0.0)),
        **exporting("UNAVAILABLE: connection refused"),
    }
    health = Health("9.8.7", live, consumers)
    assert health.answer().serving
    assert document(health) == {
        "status": "SERVING",
        "version": "9.8.7",
        "draining": False,
        "engine": {"state": "running", "restarts": 1},
        "generations": {"running": 3, "sequences_waiting": 2, "unrecorded": 0},
        "consumers": {
            "metrics": {"entries_behind": 0, "seconds_behind": 0.0},
            "otlp-spans": {
                "entries_behind": 42,
                "seconds_behind": 1.235,
                "retrying": True,
                "refusing": True,
                "last_error": "UNAVAILABLE: connection refused",
                "exported": 1_000,
                "requests": 12,
                "retries": 5,
                "rejected": 6,
                "set_aside": 7,
                "newest_set_aside": ["span 01 (decode_step) of trace 02"],
                "unreadable": 8,
            },
        },
    }


def test_health_shows_why_the_journal_cannot_be_written():
    assert "journal" not in document(Health("0.1.0", live_server()))
    health = Health("0.1.0", live_server(JournalFullError("no space is left")))
    assert document(health)["journal"] == {"writable": False, "reason": "JOURNAL_FULL"}


def test_health_shows_that_the_server_drains():
    live = live_server()
    live.show_start(Engine(), is_serving=lambda: False, is_draining=lambda: True)
    health = Health("9.8.7", live)
    assert not health.answer().serving
    assert document(health)["draining"] is True


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("", ""),
        (f"INVALID_ARGUMENT: attribute {SECRET!r} is too long", "INVALID_ARGUMENT"),
        (f"503 Service Unavailable: {SECRET}", "503 Service Unavailable"),
        (f"PARTIAL_SUCCESS: {SECRET}: no", "PARTIAL_SUCCESS"),
        (f"ValueError: {SECRET}", "ValueError"),
    ],
)
def test_health_hides_a_destinations_text_where_content_is_sent(error, shown):
    health = Health("1", live_server(), exporting(error), hide_words=True)
    assert document(health)["consumers"]["otlp-spans"]["last_error"] == shown
    assert SECRET.encode() not in health.answer().body


def test_health_shows_an_error_on_one_short_line():
    health = Health("1", live_server(), exporting("UNKNOWN:\n  " + "word " * 1_000))
    shown = document(health)["consumers"]["otlp-spans"]["last_error"]
    assert shown.startswith("UNKNOWN: word word")
    assert len(shown) == 200
