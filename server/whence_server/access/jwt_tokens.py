"""JSON Web Tokens of an identity provider (RFC 7519, RFC 8725), verified by PyJWT."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jwt

from whence_server.access.failures import Cause, RefusedError
from whence_server.access.jwks import ALGORITHMS, KeySet
from whence_server.domain.identity import Identity, Scope

_LEEWAY_S = 30
"""Difference of clocks that is allowed."""
_MAX_CHARACTERS = 16 << 10
_MAX_ID_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class JwtRules:
    """Claims that a token must have, and their meaning.

    Attributes:
        issuer: the `iss` claim.
        audience: a value of the `aud` claim.
        id_claim: claim with the caller's id.
        scope_claim: claim with its scopes or groups: a list, or words with spaces between.
        scopes: scopes by the values of that claim; empty if the values are the scopes' names.
    """

    issuer: str
    audience: str
    id_claim: str = "sub"
    scope_claim: str = "scope"
    scopes: Mapping[str, frozenset[Scope]] = field(default_factory=dict)


class Verified(NamedTuple):
    """The caller that a token names, and the time from which the token is refused."""

    identity: Identity
    ends_s: float
    """Unix time."""


class JwtVerifier:
    """Verifier of tokens against a provider's keys."""

    def __init__(self, keys: KeySet, rules: JwtRules) -> None:
        self._keys = keys
        self._rules = rules

    @staticmethod
    def has_form(token: str) -> bool:
        """Return whether a token has the three parts of a signed JWT."""
        return token.count(".") == 2

    async def verify(self, token: str) -> Verified:
        """Return the caller that a token names, and the token's end.

        Raises:
            RefusedError: the token is malformed, forged, expired, or not for this server.
        """
        if len(token) > _MAX_CHARACTERS:
            raise RefusedError(Cause.INVALID, f"a JWT of {len(token)} characters")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            # A header of HTTP can hold bytes that are no UTF-8, which PyJWT does not expect.
            raise RefusedError(Cause.INVALID, "a JWT whose header cannot be parsed") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise RefusedError(Cause.INVALID, f"a JWT with the algorithm {str(algorithm)[:20]!r}")
        key = await self._keys.find(key_id) if isinstance(key_id, str) and key_id else None
        if key is None:
            raise RefusedError(Cause.UNKNOWN, f"a JWT with the unknown kid {str(key_id)[:64]!r}")
        claims = self._decode(token, key)
        return Verified(self._read_claims(claims), float(claims["exp"]) + _LEEWAY_S)

    def _decode(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        rules = self._rules
        try:
            return jwt.decode(
                token,
                key,
                # The key's own algorithm, whatever the header says.
                algorithms=[key.algorithm_name],
                issuer=rules.issuer,
                audience=rules.audience,
                leeway=_LEEWAY_S,
                options={
                    "require": ["exp", "iss", "aud"],
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.ExpiredSignatureError:
            raise RefusedError(Cause.EXPIRED, "an expired JWT") from None
        except jwt.PyJWTError as error:
            # The class alone: a message may quote the token.
            raise RefusedError(Cause.INVALID, f"a JWT: {type(error).__name__}") from None

    def _read_claims(self, claims: dict[str, Any]) -> Identity:
        name = claims.get(self._rules.id_claim)
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID_CHARACTERS:
            raise RefusedError(Cause.INVALID, f"a JWT without the claim {self._rules.id_claim}")
        if not name.isprintable():
            # A lone surrogate cannot be put on record, and the index over owners would write "?".
            claim = self._rules.id_claim
            raise RefusedError(Cause.INVALID, f"a JWT whose claim {claim} is not printable")
        given = claims.get(self._rules.scope_claim, [])
        values = given.split() if isinstance(given, str) else given
        if not isinstance(values, list):
            values = []
        return Identity(name, self._map_scopes([v for v in values if isinstance(v, str)]))

    def _map_scopes(self, values: list[str]) -> frozenset[Scope]:
        if not self._rules.scopes:
            return frozenset(Scope(value) for value in values if value in list(Scope))
        mapped = (self._rules.scopes.get(value, frozenset()) for value in values)
        return frozenset().union(*mapped)
