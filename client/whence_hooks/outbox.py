"""Bounded buffer of the messages that a recorder has not been told are on record."""

import threading
from collections import deque
from typing import NamedTuple

from whence.v1.record_pb2 import RecordGenerationsRequest


class Numbered(NamedTuple):
    """A message with its number, and the model that the server has to be ready for first."""

    number: int
    content: RecordGenerationsRequest
    num_bytes: int
    model_number: int
    """0 if the message needs no model that earlier messages did not need."""


class Outbox:
    """Messages in the order of their numbers, from the oldest that is not acknowledged.

    Room is reserved before a message exists: what is measured in one thread becomes a message in
    another one. No method waits for the server, except `read`.

    Attributes:
        refusal: reason for which nothing is sent any more; "" while messages are sent.
        changed: condition that is notified of new messages, of acknowledgements and of the end.
    """

    def __init__(self, max_bytes: int) -> None:
        self.refusal = ""
        self.changed = threading.Condition()
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._messages: deque[Numbered] = deque()
        self._next_number = 1

    @property
    def first_number(self) -> int:
        """Number of the oldest message that is not acknowledged, or of the next one."""
        with self.changed:
            return self._get_first()

    @property
    def last_number(self) -> int:
        """Number of the newest message; 0 before the first. The caller holds `changed`."""
        return self._next_number - 1

    @property
    def acknowledged_number(self) -> int:
        """Number up to which the server has all messages. The caller holds `changed`."""
        return self._get_first() - 1

    def reserve(self, num_bytes: int, *, is_needed: bool = False) -> bool:
        """Reserve room for a message; return False if there is none.

        Args:
            num_bytes: estimated size.
            is_needed: reserve beyond the bound too, for the small messages that end a batch.
        """
        with self.changed:
            if self.refusal and not is_needed:
                return False
            if not is_needed and self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._num_bytes += num_bytes
            return True

    def release(self, num_bytes: int) -> None:
        """Give back reserved room, for which no message is added."""
        with self.changed:
            self._num_bytes -= num_bytes
            self.changed.notify_all()

    def append(self, content: RecordGenerationsRequest, model_number: int = 0) -> None:
        """Add a message with the next number; its room is counted besides the reserved one."""
        with self.changed:
            number, self._next_number = self._next_number, self._next_number + 1
            if self.refusal:
                self.changed.notify_all()
                return
            content.number = number
            num_bytes = content.ByteSize()
            self._num_bytes += num_bytes
            self._messages.append(Numbered(number, content, num_bytes, model_number))
            self.changed.notify_all()

    def refuse(self, reason: str) -> None:
        """Drop all messages, and take none any more."""
        with self.changed:
            self.refusal = reason
            self._num_bytes -= sum(message.num_bytes for message in self._messages)
            self._messages.clear()
            self.changed.notify_all()

    def acknowledge(self, number: int) -> None:
        """Drop the messages up to a number."""
        with self.changed:
            while self._messages and self._messages[0].number <= number:
                self._num_bytes -= self._messages.popleft().num_bytes
            self.changed.notify_all()

    def find(self, number: int) -> Numbered | None:
        """Return a message, or the oldest one if it is older; None if it does not exist yet.

        The caller holds `changed`.
        """
        place = max(number - self._get_first(), 0)
        return self._messages[place] if place < len(self._messages) else None

    def _get_first(self) -> int:
        return self._messages[0].number if self._messages else self._next_number
