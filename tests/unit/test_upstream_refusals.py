"""Errors of an upstream become whence's own: with its words, bounded, and without secrets."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from whence_server.domain import errors
from whence_server.engines.upstream.wire.documents import quote
from whence_server.engines.upstream.wire.refusals import (
    make_refusal,
    make_stream_error,
    read_retry_after,
)

BODY = json.dumps({"error": {"message": "the prompt is too long", "type": "invalid"}}).encode()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.UpstreamRefusedError),
        (404, errors.UpstreamRefusedError),
        (422, errors.UpstreamRefusedError),
        (401, errors.UpstreamKeyError),
        (403, errors.UpstreamKeyError),
        (429, errors.UpstreamBusyError),
        (503, errors.UpstreamBusyError),
        (502, errors.UpstreamAwayError),
        (504, errors.UpstreamAwayError),
        (500, errors.UpstreamError),
    ],
)
def test_each_status_has_its_error(status: int, kind: type[errors.UpstreamError]) -> None:
    error = make_refusal("the upstream", status, {}, BODY)
    assert type(error) is kind
    assert "the prompt is too long" in error.message
    assert str(status) in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such model", "code": 404}},
        {"object": "error", "message": "no such model", "code": 404},
        {"error": "no such model"},
        {"detail": "no such model"},
        {"message": "no such model"},
    ],
    ids=["openai", "older vllm", "ollama", "fastapi", "plain"],
)
def test_the_words_of_every_kind_are_found(body: object) -> None:
    error = make_refusal("the upstream", 404, {}, json.dumps(body).encode())
    assert error.message == "the upstream refused the request (404): no such model"


def test_a_long_message_is_cut_and_has_no_line_breaks() -> None:
    body = json.dumps({"error": {"message": "x\n" * 10_000}}).encode()
    error = make_refusal("the upstream", 400, {}, body)
    assert len(error.message) < 400
    assert "\n" not in error.message


def test_the_key_is_in_no_error() -> None:
    body = json.dumps({"error": {"message": "Incorrect API key provided: sk-abc123"}}).encode()
    error = make_refusal("the upstream", 401, {}, body, "sk-abc123")
    assert "sk-abc123" not in error.message


def test_a_redirect_is_refused_and_names_its_target() -> None:
    error = make_refusal("the upstream", 307, {"Location": "http://other/v1"}, b"")
    assert "http://other/v1" in error.message
    assert error.code is errors.Code.UNAVAILABLE


def test_retry_after_may_be_seconds_or_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert read_retry_after("7") == 7
    assert 80 < read_retry_after(format_datetime(later, usegmt=True)) <= 90
    for wrong in ("", "soon", "-3", "nan"):
        assert read_retry_after(wrong) == 1.0
    assert read_retry_after("1e9") == 3600.0


def test_a_busy_upstream_names_its_delay() -> None:
    error = make_refusal("the upstream", 429, {"Retry-After": "7"}, BODY)
    assert isinstance(error, errors.UpstreamBusyError)
    assert error.retry_after_s == 7
    assert "try again in 7 s" in error.message


def test_an_error_inside_a_stream_keeps_its_code() -> None:
    refused = make_stream_error("the upstream", {"error": {"message": "too long", "code": 400}})
    failed = make_stream_error("the upstream", {"error": {"message": "out of memory"}})
    assert isinstance(refused, errors.UpstreamRefusedError)
    assert type(failed) is errors.UpstreamError
    assert "in the middle of its answer: out of memory" in failed.message


def test_quotes_end_where_they_are_cut() -> None:
    assert quote("a\x1b[31mb") == "a [31mb"
    assert quote("é" * 1000) == "é" * 300 + "..."
