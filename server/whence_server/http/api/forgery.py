"""Requests that change something, and that a page of another site could have forged: refused.

A browser sends a form of any page without asking, with the cookies and the certificate of its user.
It asks beforehand for a header of its own, and for a body of JSON (Fetch, "CORS-safelisted
request-header").
"""

from aiohttp import web

from whence_server.domain.errors import ForgeryRefusedError
from whence_server.http.api.answering import JSON

HEADER = "X-Whence-Request"


def check_unforged(request: web.Request) -> None:
    """Raise if a page of another site could have made a browser send a request.

    Raises:
        ForgeryRefusedError: it has neither the header `HEADER` nor the media type of JSON.
    """
    if not request.headers.get(HEADER) and request.content_type != JSON:
        raise ForgeryRefusedError
