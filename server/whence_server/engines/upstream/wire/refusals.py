"""Errors of an upstream as whence's own: HTTP statuses, and errors inside of a stream."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import orjson

from whence_server.domain.errors import (
    UpstreamAwayError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamKeyError,
    UpstreamRefusedError,
)
from whence_server.engines.upstream.wire.documents import quote

DEFAULT_RETRY_S = 1.0
MAX_RETRY_S = 3600.0
"""Longest delay that is passed on."""

_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_KEY = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_AWAY = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT})
"""Statuses with which a proxy says that nobody is behind it."""


def make_refusal(
    name: str, status: int, headers: Mapping[str, str], body: bytes, secret: str = ""
) -> UpstreamError:
    """Return the error for an answer that is not a success.

    Args:
        name: the upstream in words, such as "vllm at http://127.0.0.1:8000".
        status: HTTP status.
        headers: the answer's.
        body: the beginning of the answer's body.
        secret: text that no error may hold.
    """
    message = quote(
        _hide(read_error_message(_parse(body)) or body.decode("utf-8", "replace"), secret)
    )
    said = f": {message}" if message.strip() else ""
    if 300 <= status < 400:
        target = quote(headers.get("Location", ""))
        return UpstreamError(
            f"{name} answered {status} and redirects to {target or 'nowhere'}; redirects are not "
            "followed: give the address that it redirects to"
        )
    retry_after_s = read_retry_after(headers.get("Retry-After", ""))
    return _make_error(name, status, said, retry_after_s)


def make_stream_error(name: str, document: Mapping[str, Any], secret: str = "") -> UpstreamError:
    """Return the error that an upstream sent in the middle of its answer."""
    error = document.get("error")
    fields = error if isinstance(error, dict) else document
    status = next(
        (
            value
            for key in ("code", "status", "status_code")
            if isinstance(value := fields.get(key), int) and 400 <= value < 600
        ),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    message = quote(_hide(read_error_message(document), secret))
    return _make_error(name, status, f" in the middle of its answer: {message}", DEFAULT_RETRY_S)


def _make_error(name: str, status: int, said: str, retry_after_s: float) -> UpstreamError:
    facts = {"status": str(int(status))}
    if status in _BUSY:
        return UpstreamBusyError(
            f"{name} takes no more requests at present ({int(status)}){said}; try again in "
            f"{retry_after_s:g} s",
            retry_after_s,
            **facts,
        )
    if status in _KEY:
        return UpstreamKeyError(
            f"{name} does not accept the API key ({int(status)}){said}; the server that runs "
            "whence needs another one (--upstream-api-key-file)",
            **facts,
        )
    if status in _AWAY:
        return UpstreamAwayError(f"{name} is away ({int(status)}){said}", retry_after_s, **facts)
    if 400 <= status < 500:
        return UpstreamRefusedError(f"{name} refused the request ({int(status)}){said}", **facts)
    return UpstreamError(f"{name} failed ({int(status)}){said}", **facts)


def read_error_message(document: Any) -> str:
    """Return the message of an error as any of the kinds words it; "" if there is none."""
    if not isinstance(document, dict):
        return ""
    error = document.get("error")
    for holder in (error, document):
        if isinstance(holder, dict):
            for key in ("message", "detail", "error"):
                value = holder.get(key)
                if isinstance(value, str) and value:
                    return value
    return error if isinstance(error, str) else ""


def is_error(document: Mapping[str, Any]) -> bool:
    """Return whether a streamed document is an error."""
    return document.get("error") is not None or document.get("object") == "error"


def read_retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, which is a number or a date."""
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return DEFAULT_RETRY_S
    if not seconds >= 0:
        return DEFAULT_RETRY_S
    return min(seconds, MAX_RETRY_S)


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _hide(text: str, secret: str) -> str:
    return text.replace(secret, "[hidden]") if secret else text
