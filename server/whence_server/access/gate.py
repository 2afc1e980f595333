"""The gate before every RPC and every HTTP route: who calls, and may it?"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from whence_server.access.credentials import Credentials
from whence_server.access.failures import Cause, Failures, RefusedError
from whence_server.access.scope_table import TABLE, Rule
from whence_server.access.token_file import Entry, TokenFile
from whence_server.domain.errors import ScopeMissingError, UnauthenticatedError
from whence_server.domain.identity import ANYONE, Identity, Scope

if TYPE_CHECKING:
    from whence_server.access.jwt_tokens import JwtVerifier

LOCAL_SOCKET = "unix"
"""Id of callers over a Unix socket that show no token."""

# A method without a rule is a fault of ours: nobody but an administrator reaches it.
_NO_RULE = Rule((Scope.ADMIN,))
_NOBODY = Identity("", frozenset())


class Gate:
    """Admission of calls.

    Args:
        tokens: known tokens and certificates; None for none.
        jwts: verifier of JWTs; None if none are accepted.
        socket_scopes: scopes of callers over a Unix socket that show no token.
        public: names of `scope_table.PUBLIC` that are open to everybody.
        failures: counter and log of refused calls.
    """

    def __init__(
        self,
        tokens: TokenFile | None = None,
        jwts: "JwtVerifier | None" = None,
        *,
        socket_scopes: Collection[Scope] = (),
        public: Collection[str] = (),
        failures: Failures | None = None,
    ) -> None:
        self._tokens = tokens
        self._jwts = jwts
        self._socket = Identity(LOCAL_SOCKET, frozenset(socket_scopes))
        self._public = frozenset(public)
        self.failures = failures or Failures()

    @property
    def is_open(self) -> bool:
        """True if callers are not authenticated, and may do everything."""
        return self._tokens is None and self._jwts is None

    async def admit(self, name: str, credentials: Credentials) -> Identity:
        """Return the caller of a method, if it may call the method.

        Args:
            name: full name of the method, or method and route of an HTTP request.
            credentials: what the caller shows.

        Raises:
            UnauthenticatedError: the caller is not known.
            ScopeMissingError: it has none of the scopes that the method needs.
        """
        if self.is_open:
            return ANYONE
        rule = TABLE.get(name, _NO_RULE)
        if rule.public in self._public:
            return _NOBODY
        try:
            identity = await self._identify(credentials)
        except RefusedError as error:
            self.failures.note(error.cause, name, credentials.address, error.detail)
            raise UnauthenticatedError from None
        if rule.scopes and not identity.scopes.intersection(rule.scopes):
            detail = f"{identity.id!r} has none of the scopes {', '.join(rule.scopes)}"
            self.failures.note(Cause.SCOPE, name, credentials.address, detail)
            raise ScopeMissingError(rule.scopes)
        return identity

    async def _identify(self, credentials: Credentials) -> Identity:
        if credentials.authorization:
            return await self._identify_token(credentials.token)
        if credentials.names and self._tokens is not None:
            entry = self._tokens.find_certificate(credentials.names)
            if entry is None:
                names = ", ".join(credentials.names)[:200]
                raise RefusedError(Cause.UNKNOWN, f"a certificate with the names {names!a}")
            return _require_valid(entry)
        if credentials.is_local_socket and self._socket.scopes:
            return self._socket
        raise RefusedError(Cause.MISSING, "no token and no known certificate")

    async def _identify_token(self, token: str) -> Identity:
        if not token:
            raise RefusedError(Cause.INVALID, "an authorization header without a bearer token")
        if self._jwts is not None and self._jwts.has_form(token):
            identity = await self._jwts.verify(token)
            if identity.id == LOCAL_SOCKET:
                raise RefusedError(Cause.INVALID, "a JWT with the id of Unix sockets' callers")
            return identity
        entry = None if self._tokens is None else self._tokens.find_token(token)
        if entry is None:
            raise RefusedError(Cause.UNKNOWN, "an unknown token")
        return _require_valid(entry)


def _require_valid(entry: Entry) -> Identity:
    if entry.has_expired():
        raise RefusedError(Cause.EXPIRED, f"credentials of {entry.identity.id!r} have expired")
    return entry.identity


OPEN_GATE = Gate()
"""Gate of a server without authentication."""
