"""Logins of people with a browser: a random number in a cookie stands for a token.

The token itself stays in the memory of the server. Every request is admitted by it anew, so that a
revoked token ends its logins, and the end of the server ends all.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

LIFETIME_S = 12 * 3_600
"""Time after which a person has to log in again."""
MAX_LOGINS = 10_000
"""Most logins at one time; the oldest gives way."""
_ID_BYTES = 32


class _Login(NamedTuple):
    authorization: str
    ends_s: float


class Logins:
    """The logins that are valid.

    Args:
        clock: seconds of a clock that is never set back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # In the order of their ends, which a dict keeps: all last equally long.
        self._logins: dict[bytes, _Login] = {}

    def begin(self, authorization: str) -> str:
        """Begin a login with the value of an authorization header; return the cookie's value."""
        self._forget_ended()
        if len(self._logins) >= MAX_LOGINS:
            del self._logins[next(iter(self._logins))]
        value = secrets.token_urlsafe(_ID_BYTES)
        self._logins[_make_key(value)] = _Login(authorization, self._clock() + LIFETIME_S)
        return value

    def find(self, value: str) -> str:
        """Return the authorization of a login by its cookie's value; "" if there is none."""
        login = self._logins.get(_make_key(value)) if value else None
        return login.authorization if login and self._clock() < login.ends_s else ""

    def end(self, value: str) -> None:
        """End a login; do nothing if there is none."""
        self._logins.pop(_make_key(value), None)

    def _forget_ended(self) -> None:
        now_s = self._clock()
        ended = [key for key, login in self._logins.items() if login.ends_s <= now_s]
        for key in ended:
            del self._logins[key]


def _make_key(value: str) -> bytes:
    # A look-up by the value itself would tell by its time how much of a guess is right.
    return hashlib.sha256(value.encode(errors="replace")).digest()
