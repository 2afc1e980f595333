"""Notifications of other servers' changes, from a session of their own."""

import logging
import selectors
import socket
import threading
from collections.abc import Callable

import psycopg

from whence_server.domain.errors import JournalError
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.sharing.store import Change

_log = logging.getLogger(__name__)

CHANNELS = {"whence_entries": Change.ENTRIES, "whence_errands": Change.ERRANDS}
"""Channels of notifications; the payload is the number of the writer that they concern."""
_LOOK_UP_S = 1.0


class Listener:
    """Thread that calls a function after each change.

    Args:
        url: address of the database.
        writer: number of this server's writer, whose own entries are no news.
        on_change: called in the thread; also after a lost connection, which may have lost some.
    """

    def __init__(self, url: str, writer: int, on_change: Callable[[Change], None]) -> None:
        self._url = url
        self._writer = str(writer)
        self._on_change = on_change
        self._ended = threading.Event()
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="journal-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it; calling it twice is allowed."""
        if not self._ended.is_set():
            self._ended.set()
            self._waker.send(b"x")
            self._thread.join()
            self._wake.close()
            self._waker.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._listen()
            except (JournalError, psycopg.Error) as error:
                _log.debug("notifications are lost, and changes are looked for: %s", error)
                self._ended.wait(_LOOK_UP_S)
            for change in Change:
                self._on_change(change)

    def _listen(self) -> None:
        connection = PostgresConnection(self._url)
        try:
            for channel in CHANNELS:
                connection.execute(f"LISTEN {channel}")
            while not self._ended.is_set():
                self._wait(connection.raw.fileno())
                for notice in connection.raw.notifies(timeout=0):
                    change = CHANNELS[notice.channel]
                    is_own = notice.payload == self._writer
                    if is_own is (change is Change.ERRANDS):
                        self._on_change(change)
        finally:
            connection.close()

    def _wait(self, session: int) -> None:
        """Wait until a session has news, somebody stops the thread, or it is time to look."""
        # `select.select` refuses descriptors above 1023, which a server with many clients has.
        with selectors.DefaultSelector() as waiting:
            for descriptor in (session, self._wake.fileno()):
                waiting.register(descriptor, selectors.EVENT_READ)
            waiting.select(_LOOK_UP_S)
