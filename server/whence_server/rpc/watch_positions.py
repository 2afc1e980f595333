"""Positions of WatchGenerations, one in each log of the journal, and their tokens."""

import base64
import binascii
import re

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.journal.journal import Journal

# Tokens of earlier servers, "p1:", do not name the journal; "p2:" has one log, "p3:" several.
_ONE_LOG = re.compile(rb"(?:p1:|p2:([0-9a-f]{32}):)([0-9]{1,18})")
_LOGS = re.compile(rb"p3((?::[0-9a-f]{32}:[0-9]{1,18})+)")
_MAX_TOKEN_CHARACTERS = 1 << 16


class WatchPositions:
    """Positions that a watcher has reached.

    Attributes:
        reached: position by the id of the log.
    """

    def __init__(self, journal: Journal, reached: dict[bytes, int]) -> None:
        self._journal = journal
        self.reached = reached

    def make_token(self, log_id: bytes | None = None, position: int = 0) -> str:
        """Return an opaque token, which no other journal takes.

        Args:
            log_id: id of a log in which the watcher is at another position.
            position: that position.
        """
        reached = self.reached if log_id is None else self.reached | {log_id: position}
        own = self._journal.id
        if log_id is None:
            # A position is handed out only once it is on disk, where no crash can give it away.
            committed = self._journal.committed_position
            reached = reached | {own: min(reached.get(own, 0), committed)}
        if reached.keys() == {own}:
            raw = b"p2:%b:%d" % (own.hex().encode(), reached[own])
        else:
            raw = b"p3" + b"".join(
                b":%b:%d" % (one.hex().encode(), place) for one, place in reached.items()
            )
        return base64.urlsafe_b64encode(raw).decode()


async def read_positions(token: str, journal: Journal) -> WatchPositions:
    """Parse a token of `WatchPositions`, or of a server that did not name its journal.

    Args:
        token: the token; "" for the present end of every log.
        journal: the server's journal.

    Raises:
        InvalidRequestError: the token is malformed, or from another journal.
    """
    ends = {journal.id: journal.position} | await journal.sharing.read_other_ends()
    if not token:
        return WatchPositions(journal, ends)
    parsed = _parse(token, journal.id)
    if parsed is None:
        raise _make_error("is not a position that WatchGenerations returned")
    for log_id, position in parsed.items():
        # A watch from there would miss events in silence.
        if position > ends.get(log_id, -1):
            raise _make_error(
                f"is position {position} of another journal than this server's: leave it empty, or "
                "ask the server that returned it"
            )
    # A log that the token does not name began after it.
    return WatchPositions(journal, parsed)


def _parse(token: str, own: bytes) -> dict[bytes, int] | None:
    if len(token) > _MAX_TOKEN_CHARACTERS:
        return None
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    if (one := _ONE_LOG.fullmatch(raw)) is not None:
        return {bytes.fromhex(one[1].decode()) if one[1] else own: int(one[2])}
    if (several := _LOGS.fullmatch(raw)) is None:
        return None
    parts = several[1].decode().split(":")[1:]
    return {
        bytes.fromhex(log_id): int(position)
        for log_id, position in zip(parts[::2], parts[1::2], strict=True)
    }


def _make_error(description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("after_position", description))
