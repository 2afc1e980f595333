"""Identity of a caller, and the scopes that say what it may do."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Permission of a caller; none includes another."""

    GENERATE = "generate"
    """Start generations; read and cancel one's own."""
    READ = "read"
    """Read the record without text and token ids."""
    READ_CONTENT = "read:content"
    """Read the record with text and token ids."""
    EXPLAIN = "explain"
    """Explain outputs, and compute the emergence of a text."""
    DELETE = "delete"
    """Delete generations."""
    METRICS = "metrics"
    """Read the metrics page."""
    ADMIN = "admin"
    """Cancel generations of other callers; read the audit."""
    READ_ALL = "read:all"
    """Read and delete generations of other callers too, by the other scopes."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller that was authenticated.

    Attributes:
        id: name of the caller, which owns its generations; "" without authentication.
        scopes: its scopes.
    """

    id: str
    scopes: frozenset[Scope]

    def has(self, scope: Scope) -> bool:
        """Return whether the caller has a scope."""
        return scope in self.scopes

    def sees(self, owner: str) -> bool:
        """Return whether the generations of an owner exist for the caller."""
        return owner == self.id or Scope.READ_ALL in self.scopes


ANYONE = Identity("", frozenset(Scope))
"""Every caller of a server without authentication."""
