"""Readers of streamed answers: server-sent events, and one JSON document a line.

Both take bytes as the network cuts them and yield whole pieces, under limits of size.
"""

from typing import NamedTuple, Protocol

from whence_server.domain.errors import UpstreamMalformedError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One piece of a streamed answer."""

    data: bytes
    name: str = ""
    """Name of a server-sent event; "" for none."""


class EventReader(Protocol):
    """Reader of one streamed answer."""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the pieces that end in these bytes.

        Raises:
            UpstreamMalformedError: a piece has more bytes than the limit.
        """

    def finish(self) -> list[Event]:
        """Return what is left when the answer has ended."""


class LineSplitter:
    """Splitter of bytes into lines, which end with LF, CR or CRLF.

    Args:
        max_bytes: most bytes of one line.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._ended_with_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in these bytes, without their ends.

        Raises:
            UpstreamMalformedError: a line has more bytes than the limit.
        """
        if self._ended_with_cr and chunk.startswith(b"\n"):
            # The LF belongs to the CR that ended the bytes before.
            chunk = chunk[1:]
            self._ended_with_cr = False
        if b"\r" in chunk:
            self._ended_with_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif chunk:
            self._ended_with_cr = False
        first, *others = chunk.split(b"\n")
        self._rest += first
        self._check(len(self._rest))
        if not others:
            return []
        *middle, last = others
        lines = [bytes(self._rest), *middle]
        self._rest = bytearray(last)
        self._check(max(map(len, (*middle, last))))
        return lines

    def finish(self) -> bytes:
        """Return the bytes after the last line's end."""
        return bytes(self._rest)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise UpstreamMalformedError(
                f"the upstream sent a line of more than {self._max_bytes} bytes, the most that "
                "whence takes"
            )


class ServerSentEvents:
    """Reader of server-sent events (WHATWG HTML, "Interpreting an event stream").

    Args:
        max_event_bytes: most bytes of one event, and of one line.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._lines = LineSplitter(max_event_bytes)
        self._max_event_bytes = max_event_bytes
        self._is_first_line = True
        self._data: list[bytes] = []
        self._num_bytes = 0
        self._name = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that end in these bytes."""
        events = []
        for line in self._lines.feed(chunk):
            if self._is_first_line:
                line = line.removeprefix(_BYTE_ORDER_MARK)  # noqa: PLW2901
                self._is_first_line = False
            if line:
                self._add(line)
                continue
            if self._data:
                events.append(Event(b"\n".join(self._data), self._name))
            self._data, self._num_bytes, self._name = [], 0, ""
        return events

    def finish(self) -> list[Event]:
        """Return nothing: an event without its empty line is not whole."""
        return []

    def _add(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._num_bytes += len(value) + 1
            if self._num_bytes > self._max_event_bytes + 1:
                raise UpstreamMalformedError(
                    f"the upstream sent an event of more than {self._max_event_bytes} bytes, the "
                    "most that whence takes"
                )
        elif field == b"event":
            self._name = value[:64].decode("utf-8", "replace")


class JsonLines:
    """Reader of answers with one JSON document a line (NDJSON).

    Args:
        max_event_bytes: most bytes of one line.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._lines = LineSplitter(max_event_bytes)

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the lines that end in these bytes."""
        return [Event(line) for line in self._lines.feed(chunk) if line.strip()]

    def finish(self) -> list[Event]:
        """Return the last line, which needs no end."""
        rest = self._lines.finish()
        return [Event(rest)] if rest.strip() else []
