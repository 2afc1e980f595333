"""The master keys that a source gives, read again when one is missing."""

import logging
import time
from collections.abc import Mapping
from threading import Lock

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.key_sources import KeySource
from whence_server.journal.sealing.key_source import read_master_keys
from whence_server.journal.sealing.master_keys import MasterKey

_log = logging.getLogger(__name__)

_READ_AGAIN_S = 1.0


class Masters:
    """Master keys of one source, which may be called from any thread.

    Attributes:
        source: place of the keys.
        newest: the first key that the source gave at the start.
    """

    def __init__(self, source: KeySource, environment: Mapping[str, str]) -> None:
        """Read the keys.

        Raises:
            ConfigurationError: they cannot be read.
        """
        self.source = source
        self._environment = environment
        self._lock = Lock()
        self._read_at_s = 0.0
        self._trouble = ""
        keys = read_master_keys(source, environment)
        self.newest = keys[0]
        self._keys = {key.id: key for key in keys}

    @property
    def ids(self) -> list[str]:
        """The ids of all keys."""
        return list(self._keys)

    def find(self, master_id: str) -> MasterKey | None:
        """Return a key; None if the source does not give it, even if it is read again.

        The source is read again at most once a second. Keys stay known that it no longer gives.
        """
        if master_id not in self._keys and self._may_read_again():
            self._keys = self._keys | {key.id: key for key in self._read_again()}
        return self._keys.get(master_id)

    def _read_again(self) -> tuple[MasterKey, ...]:
        """Read the source; return no key, and log the reason once, if it cannot be read."""
        try:
            keys = read_master_keys(self.source, self._environment)
        except ConfigurationError as error:
            # The message names the place, and never a key.
            if str(error) != self._trouble:
                self._trouble = str(error)
                _log.error("the master keys cannot be read again: %s", error)
            return ()
        self._trouble = ""
        return keys

    def _may_read_again(self) -> bool:
        now = time.monotonic()
        with self._lock:
            due = now - self._read_at_s >= _READ_AGAIN_S
            if due:
                self._read_at_s = now
        return due
