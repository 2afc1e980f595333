"""Logins of people with a browser: a random number in a cookie stands for a token.

The token itself stays in the memory of the server, which checks it at every request: a revoked
token ends its logins. The end of the server ends all logins.
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
MAX_LOGINS_OF_CALLER = 50
"""Most logins of one caller at one time; its own oldest gives way, so that it ends no other's."""
_ID_BYTES = 32


class _Login(NamedTuple):
    authorization: str
    caller_id: str
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

    def begin(self, authorization: str, caller_id: str) -> str:
        """Begin a login of a caller; return the cookie's value.

        Args:
            authorization: value of an authorization header.
            caller_id: id of the caller that it is the token of.
        """
        self._forget_ended()
        own = [key for key, login in self._logins.items() if login.caller_id == caller_id]
        if len(own) >= MAX_LOGINS_OF_CALLER:
            del self._logins[own[0]]
        elif len(self._logins) >= MAX_LOGINS:
            del self._logins[next(iter(self._logins))]
        value = secrets.token_urlsafe(_ID_BYTES)
        ends_s = self._clock() + LIFETIME_S
        self._logins[_make_key(value)] = _Login(authorization, caller_id, ends_s)
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
        while self._logins:
            oldest = next(iter(self._logins))
            if now_s < self._logins[oldest].ends_s:
                return
            del self._logins[oldest]


def _make_key(value: str) -> bytes:
    # A look-up by the value itself would tell by its time how much of a guess is right.
    return hashlib.sha256(value.encode(errors="replace")).digest()
