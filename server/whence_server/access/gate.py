"""The gate before every RPC and every HTTP route: who calls, and may it?"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whence_server.access.audit import SILENT, AuditTrail
from whence_server.access.credentials import Credentials
from whence_server.access.failures import Cause, Failures, RefusedError
from whence_server.access.logins import Logins
from whence_server.access.public_calls import PublicCalls
from whence_server.access.scope_table import TABLE, Rule
from whence_server.access.sessions import ANYBODY, Admission, Sessions
from whence_server.access.token_file import Entry, TokenFile
from whence_server.domain.audit import AuditAction, Deed
from whence_server.domain.errors import ScopeMissingError, UnauthenticatedError
from whence_server.domain.identity import Identity, Scope

if TYPE_CHECKING:
    from whence_server.access.jwt_tokens import JwtVerifier

_log = logging.getLogger(__name__)

LOCAL_SOCKET = "unix"
"""Id of callers over a Unix socket that show no token."""

# A method without a rule is a fault of ours: nobody but an administrator reaches it.
_NO_RULE = Rule((Scope.ADMIN,))
NOBODY = Admission(Identity("", frozenset()))
"""Admission of a caller without credentials to a public method."""
_WATCH_S = 1.0
"""Time after which running calls are ended at the latest, once their token is revoked."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A caller whose credentials were accepted, and their later state."""

    identity: Identity
    find_again: Callable[[], Identity | None]
    """Returns the caller as it is now; None once its credentials are no longer valid."""


class Gate:
    """Admission of calls.

    Args:
        tokens: known tokens and certificates; None for none.
        jwts: verifier of JWTs; None if none are accepted.
        socket_scopes: scopes of callers over a Unix socket that show no token.
        public: names of `scope_table.PUBLIC` that are open to everybody.
        failures: counter and log of refused calls.
        trail: audit of calls.
        max_calls: most calls of one caller that run at one time; 0 for no limit.
        clock: Unix time in seconds.

    Attributes:
        sessions: the admitted calls that run.
        public_calls: gRPC's calls of public methods that run.
        logins: logins of people with a browser.
    """

    def __init__(
        self,
        tokens: TokenFile | None = None,
        jwts: "JwtVerifier | None" = None,
        *,
        socket_scopes: Collection[Scope] = (),
        public: Collection[str] = (),
        failures: Failures | None = None,
        trail: AuditTrail = SILENT,
        max_calls: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = tokens
        self._jwts = jwts
        self._socket = Identity(LOCAL_SOCKET, frozenset(socket_scopes))
        self._public = frozenset(public)
        self._clock = clock
        self.failures = failures or Failures()
        self.trail = trail
        self.sessions = Sessions(max_calls)
        self.public_calls = PublicCalls()
        self.logins = Logins()

    @property
    def is_open(self) -> bool:
        """True if callers are not authenticated, and may do everything."""
        return self._tokens is None and self._jwts is None

    async def admit(self, name: str, credentials: Credentials) -> Admission:
        """Admit the caller of a method, if it may call the method.

        Args:
            name: full name of the method, or method and route of an HTTP request.
            credentials: what the caller shows.

        Raises:
            UnauthenticatedError: the caller is not known.
            ScopeMissingError: it has none of the scopes that the method needs.
        """
        if self.is_open:
            return ANYBODY
        rule = TABLE.get(name, _NO_RULE)
        if rule.public in self._public:
            return NOBODY
        try:
            known = await self._identify(credentials)
        except RefusedError as error:
            self._refuse(error.cause, name, credentials, error.detail)
            raise UnauthenticatedError from None
        identity = known.identity
        if not _suffices(identity, rule):
            detail = f"{identity.id!r} has none of the scopes {', '.join(rule.scopes)}"
            self._refuse(Cause.SCOPE, name, credentials, detail, identity.id)
            raise ScopeMissingError(rule.scopes)

        def is_valid() -> bool:
            ends_s = credentials.certificate_ends_s
            if ends_s is not None and self._clock() >= ends_s:
                return False
            now = known.find_again()
            # What a call shows is chosen at its beginning, by the scopes that it had then.
            if now is None or now.id != identity.id:
                return False
            return not rule.scopes or identity.scopes <= now.scopes

        return Admission(identity, is_valid)

    async def watch(self) -> None:
        """End calls whose credentials have become invalid, and write the audit's numbers."""
        while True:
            await asyncio.sleep(_WATCH_S)
            self.check_running()

    def check_running(self) -> None:
        """Do what `watch` does each second."""
        self.trail.write_due()
        if num_ended := self.sessions.end_invalid():
            _log.warning(
                "%d running calls were ended: their tokens, certificates or logins have ended, or "
                "have lost a scope",
                num_ended,
            )

    def _refuse(
        self, cause: Cause, name: str, credentials: Credentials, detail: str, caller_id: str = ""
    ) -> None:
        self.failures.note(cause, name, credentials.address, detail)
        error = ScopeMissingError(()) if caller_id else UnauthenticatedError()
        self.trail.note(
            Deed(
                AuditAction.REFUSED,
                time.time_ns(),
                # A stranger that tries every method has one record for each cause.
                method=name if caller_id else "",
                caller_id=caller_id,
                address=credentials.address,
                detail=cause.value,
                status_code=error.code.value,
            )
        )

    async def _identify(self, credentials: Credentials) -> _Known:
        ends_s = credentials.certificate_ends_s
        if ends_s is not None and self._clock() >= ends_s:
            # It was valid at the handshake, which may be long ago, or that of an earlier session.
            raise RefusedError(Cause.EXPIRED, "a client certificate has expired")
        if credentials.authorization:
            return await self._identify_token(credentials.token)
        if credentials.names and self._tokens is not None:
            entry = self._tokens.find_certificate(credentials.names)
            if entry is None:
                names = ", ".join(credentials.names)[:200]
                raise RefusedError(Cause.UNKNOWN, f"a certificate with the names {names!a}")
            return _know(self._tokens, entry)
        if credentials.is_local_socket and self._socket.scopes:
            return _Known(self._socket, lambda: self._socket)
        raise RefusedError(Cause.MISSING, "no token and no known certificate")

    async def _identify_token(self, token: str) -> _Known:
        if not token:
            raise RefusedError(Cause.INVALID, "an authorization header without a bearer token")
        if self._jwts is not None and self._jwts.has_form(token):
            return await self._identify_jwt(self._jwts, token)
        entry = None if self._tokens is None else self._tokens.find_token(token)
        if self._tokens is None or entry is None:
            raise RefusedError(Cause.UNKNOWN, "an unknown token")
        return _know(self._tokens, entry)

    async def _identify_jwt(self, jwts: "JwtVerifier", token: str) -> _Known:
        verified = await jwts.verify(token)
        identity = verified.identity
        if identity.id == LOCAL_SOCKET:
            raise RefusedError(Cause.INVALID, "a JWT with the id of Unix sockets' callers")
        return _Known(identity, lambda: identity if self._clock() < verified.ends_s else None)


def _know(tokens: TokenFile, entry: Entry) -> _Known:
    if entry.has_expired():
        raise RefusedError(Cause.EXPIRED, f"credentials of {entry.identity.id!r} have expired")

    def find_again() -> Identity | None:
        now = tokens.find_again(entry)
        return None if now is None or now.has_expired() else now.identity

    return _Known(entry.identity, find_again)


def _suffices(identity: Identity, rule: Rule) -> bool:
    return not rule.scopes or bool(identity.scopes.intersection(rule.scopes))


OPEN_GATE = Gate()
"""Gate of a server without authentication."""
