"""The transparency log over HTTP (C2SP tlog-tiles), which everybody may read: it has no content."""

from http import HTTPStatus

from aiohttp import web

from whence_server.domain.errors import WhenceError
from whence_server.http.server import Answer
from whence_server.http.statuses import get_http_status
from whence_server.proof.log.log import TransparencyLog
from whence_server.proof.log.tiles import CHECKPOINT

ROUTE = "/log/{path:.+}"
_MAX_PATH_CHARACTERS = 64
# A full tile never changes; a partial one neither, but a full one soon takes its place.
_FOREVER, _NEVER = "public, max-age=31536000, immutable", "no-cache"


def make_log_answer(log: TransparencyLog) -> Answer:
    """Return the handler of `ROUTE`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        try:
            found = len(path) <= _MAX_PATH_CHARACTERS and await log.read_resource(path)
        except WhenceError as error:
            return web.Response(status=get_http_status(error), text=f"{error.message}\n")
        if not found:
            return web.Response(
                status=HTTPStatus.NOT_FOUND,
                text="expected checkpoint, tile/LEVEL/NUMBER or tile/entries/NUMBER of the log\n",
            )
        is_checkpoint = path == CHECKPOINT
        kind = "text/plain; charset=utf-8" if is_checkpoint else "application/octet-stream"
        return web.Response(
            body=found,
            headers={"Content-Type": kind, "Cache-Control": _NEVER if is_checkpoint else _FOREVER},
        )

    return answer
