"""OTLP over HTTP: posts a request, and says what its answer means."""

import asyncio
import email.utils
import gzip
import json
import math
import time
from collections.abc import Callable
from http import HTTPStatus

import aiohttp
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings, check_http_url
from whence_server.telemetry.export.outcomes import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    Refused,
    TooLarge,
    TryAgain,
)
from whence_server.telemetry.export.tls import make_ssl_context

PROTOBUF, JSON, HTML = "application/x-protobuf", "application/json", "text/html"

RETRYABLE = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
        # Not in OTLP's table; it speaks of the connection.
        HTTPStatus.REQUEST_TIMEOUT,
    }
)
"""OTLP's table, and what else says nothing against the spans."""
MISCONFIGURED = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.PAYMENT_REQUIRED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_ACCEPTABLE,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
        HTTPStatus.GONE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.MISDIRECTED_REQUEST,
        HTTPStatus.UPGRADE_REQUIRED,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
"""These speak of who sends, where to and in which form, and so do redirections."""

_PARTIAL_SUCCESS = ("partialSuccess", "partial_success")
_MAX_ANSWER_BYTES = 64 << 10
_MAX_REASON_CHARACTERS = 200
# Of step spans, a fifth is left; level 6 takes nearly three times as long for a tenth less.
_GZIP_LEVEL = 1


class OtlpHttpSink:
    """Posts spans to an OTLP/HTTP endpoint; made within a running event loop.

    Redirections are not followed: they would carry the headers' keys elsewhere. The proxies of
    the environment (HTTPS_PROXY, NO_PROXY and so on) are used, as gRPC does.

    Args:
        settings: where to, and how; the endpoint is the whole URL.
        clock: seconds since the epoch, which dates in answers are held against.

    Raises:
        ConfigurationError: the endpoint is not one, or a PEM file holds something else.
    """

    def __init__(self, settings: OtlpSettings, clock: Callable[[], float] = time.time) -> None:
        try:
            self._url = check_http_url(settings.endpoint)
        except ValueError as error:
            raise ConfigurationError(f"OTLP endpoint {settings.endpoint!r}: {error}") from None
        self._gzip = settings.gzip
        self._clock = clock
        headers = {"content-type": PROTOBUF, "user-agent": "whence", **settings.headers}
        if settings.gzip:
            headers["content-encoding"] = "gzip"
        secure = self._url.startswith("https:")
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            connector=aiohttp.TCPConnector(ssl=make_ssl_context(settings) if secure else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )

    async def export(self, request: bytes) -> Outcome:
        """Post one serialised ExportTraceServiceRequest."""
        if self._gzip:
            request = await asyncio.to_thread(gzip.compress, request, _GZIP_LEVEL)
        try:
            async with self._session.post(
                self._url, data=request, allow_redirects=False
            ) as response:
                body = await _read_body(response)
        except TimeoutError:
            return TryAgain("no answer in time")
        except (aiohttp.ClientError, OSError) as error:
            return TryAgain(f"{type(error).__name__}: {_shorten(str(error).encode())}")
        if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            return _read_success(response, body)
        return self._find_outcome(response, body)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _find_outcome(self, response: aiohttp.ClientResponse, body: bytes) -> Outcome:
        status = response.status
        reason = f"{_name_status(status)}: {_read_message(response, body)}"
        if status in RETRYABLE:
            return TryAgain(reason, self._retry_after_s(response))
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return TooLarge(reason)
        if status in MISCONFIGURED or status < HTTPStatus.BAD_REQUEST:
            return Misconfigured(reason)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return Failed(reason, self._retry_after_s(response))
        return Refused(reason)

    def _retry_after_s(self, response: aiohttp.ClientResponse) -> float | None:
        """Read Retry-After, seconds or a date; None where there is none, or nonsense."""
        text = response.headers.get("retry-after", "")
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(text).timestamp() - self._clock()
            except (ValueError, OverflowError):
                return None
        return max(seconds, 0.0) if math.isfinite(seconds) else None


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read an answer's body, up to a bound: nobody's error page is to fill the memory."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return bytes(body[:_MAX_ANSWER_BYTES])


def _read_success(response: aiohttp.ClientResponse, body: bytes) -> Outcome:
    """Read an answer that says the spans were taken, and believe no other page."""
    try:
        partial = _answer(response.content_type, body).partial_success
    except ValueError:
        return Failed(
            f"{_name_status(response.status)}, with something that is no OTLP answer: "
            f"{response.content_type}, {_shorten(body)}; is {response.url.path} where OTLP goes?"
        )
    return Accepted(partial.rejected_spans, partial.error_message)


def _answer(content_type: str, body: bytes) -> ExportTraceServiceResponse:
    """Read OTLP's answer.

    An empty body says that all was taken. Of other bodies, two letters of plain text can pass
    for a message with fields that are not known, so that only protobuf may have these.

    Raises:
        ValueError: it is another program's.
    """
    if content_type == HTML:
        raise ValueError("a page")
    if content_type == JSON and body.strip():
        return _answer_in_json(body)
    try:
        answer = ExportTraceServiceResponse.FromString(body)
    except DecodeError as error:
        raise ValueError("no message") from error
    if content_type != PROTOBUF and len(UnknownFieldSet(answer)):
        raise ValueError("a message of another program, or none")
    return answer


def _answer_in_json(body: bytes) -> ExportTraceServiceResponse:
    """Read OTLP's answer in JSON: an object with its one field, or without any.

    Raises:
        ValueError: it is another program's.
    """
    try:
        found = json.loads(body)
        told = [found[name] for name in _PARTIAL_SUCCESS if name in found]
        if found != {} and not any(value is None or isinstance(value, dict) for value in told):
            raise ValueError("an answer of another program")
        return json_format.ParseDict(
            found, ExportTraceServiceResponse(), ignore_unknown_fields=True
        )
    except (json_format.ParseError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError("no message") from error


def _name_status(status: int) -> str:
    """Return a status with its standard name, as the server's phrase may be anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _read_message(response: aiohttp.ClientResponse, body: bytes) -> str:
    """Return an error's message: of a google.rpc.Status, in protobuf or JSON, or the text."""
    try:
        if response.content_type == PROTOBUF:
            return str(Status.FromString(body).message)
        if response.content_type == JSON:
            found = json.loads(body)
            message = found.get("message") if isinstance(found, dict) else None
            if isinstance(message, str):
                return message
    except (DecodeError, ValueError, RecursionError):
        pass
    return _shorten(body)


def _shorten(body: bytes) -> str:
    text = " ".join(body.decode(errors="replace").split())
    return text[:_MAX_REASON_CHARACTERS]
