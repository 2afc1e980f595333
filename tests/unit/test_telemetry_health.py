"""How the server says that it is: what the document holds, and what never gets into it."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from whence_server.telemetry.export.exporter import ExportHealth
from whence_server.telemetry.health import Health
from whence_server.telemetry.journal import Behind

SECRET = "zanzibar quokka"


@dataclass
class Engine:
    state: str = "running"
    num_restarts: int = 2


@dataclass
class Generations:
    num_running: int = 3
    num_waiting_sequences: int = 4


def export_health(last_error: str = "", **fields: Any) -> ExportHealth:
    return ExportHealth(
        **{
            "num_entries_behind": 42,
            "oldest_s": 1.23456,
            "num_exported": 1_000,
            "num_requests": 12,
            "num_retries": 5,
            "num_rejected": 6,
            "num_set_aside": 7,
            "num_unreadable": 8,
            "retrying": True,
            "refusing": True,
            "newest_set_aside": ("span 01 (decode_step) of trace 02",),
            "last_error": last_error,
            **fields,
        }
    )


def document(health: Health) -> dict[str, Any]:
    answer = health.answer()
    found = json.loads(answer.body)
    assert found["status"] == ("SERVING" if answer.serving else "NOT_SERVING")
    return found


def test_before_anything_is_there():
    health = Health("9.8.7")
    assert document(health) == {
        "status": "NOT_SERVING",
        "version": "9.8.7",
        "draining": False,
        "consumers": {},
    }


def test_what_is_behind_and_by_how_much():
    health = Health(
        "9.8.7",
        is_serving=lambda: True,
        engine=Engine(),
        generations=Generations(),
        consumers={
            "metrics": lambda: Behind(0, 0.0),
            "otlp-spans": lambda: Behind(42, 1.23456),
        },
        exports={"otlp-spans": lambda: export_health("UNAVAILABLE: connection refused")},
    )
    assert health.answer().serving
    assert document(health) == {
        "status": "SERVING",
        "version": "9.8.7",
        "draining": False,
        "engine": {"state": "running", "restarts": 2},
        "generations": {"running": 3, "sequences_waiting": 4},
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


def test_a_journal_that_cannot_be_written_says_why():
    health = Health("0.1.0")
    assert "journal" not in document(health)
    health.journal_trouble = lambda: "JOURNAL_FULL"
    assert document(health)["journal"] == {"writable": False, "reason": "JOURNAL_FULL"}


def test_a_server_that_drains_says_so():
    health = Health("9.8.7", is_draining=lambda: True)
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
def test_what_a_destination_says_of_content_stays_out(error, shown):
    health = Health("1", hide_words=True)
    health.consumers["otlp-spans"] = lambda: Behind(1, 0.0)
    health.exports["otlp-spans"] = lambda: export_health(error)
    assert document(health)["consumers"]["otlp-spans"]["last_error"] == shown
    assert SECRET.encode() not in health.answer().body


def test_an_error_is_one_line_and_not_a_page():
    health = Health("1")
    health.consumers["otlp-spans"] = lambda: Behind(1, 0.0)
    health.exports["otlp-spans"] = lambda: export_health("UNKNOWN:\n  " + "word " * 1_000)
    shown = document(health)["consumers"]["otlp-spans"]["last_error"]
    assert shown.startswith("UNKNOWN: word word")
    assert len(shown) == 200
