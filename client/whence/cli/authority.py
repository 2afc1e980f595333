"""Requests to an authority of timestamps (RFC 3161)."""

import http.client
import time
import urllib.request
from urllib.parse import urlsplit

from whence.cli.exits import UsageError
from whence.proof.timestamps import ANSWER_TYPE, MAX_ANSWER_BYTES, QUERY_TYPE

_TIMEOUT_S = 30.0
_PIECE_BYTES = 16 << 10


def ask_authority(url: str, query: bytes, timeout_s: float = _TIMEOUT_S) -> bytes:
    """Return an authority's answer to a request.

    Args:
        url: address of the authority.
        query: the request.
        timeout_s: seconds within which the whole answer has to come.

    Raises:
        UsageError: the address is none, or no whole answer comes in time.
    """
    deadline = time.monotonic() + timeout_s
    try:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise UsageError(f"--authority {url}: expected a URL that begins with http or https")
        request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
            url, query, {"Content-Type": QUERY_TYPE, "Accept": ANSWER_TYPE}
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            return _read_answer(answer, deadline)
    # A server of another kind, or a port that is no number, is no OSError.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UsageError(f"--authority {url}: does not answer ({error})") from None


def _read_answer(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read a whole answer; a socket's own timeout begins anew with each byte.

    Raises:
        TimeoutError: it takes too long.
    """
    found = bytearray()
    while len(found) <= MAX_ANSWER_BYTES and (piece := answer.read1(_PIECE_BYTES)):
        found += piece
        if time.monotonic() > deadline:
            raise TimeoutError("its answer takes too long")
    return bytes(found[: MAX_ANSWER_BYTES + 1])
