"""Limits of what a caller sees of the record: whose generations, and if their content."""

from typing import Protocol

from whence_server.domain.errors import GenerationNotFoundError
from whence_server.domain.identity import Identity, Scope
from whence_server.journal.rows import GenerationRow


class Rows(Protocol):
    """Generations by their id."""

    async def look_up(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""


async def require_access(
    rows: Rows, generation_id: str, identity: Identity, *others: Scope
) -> None:
    """Check that a generation exists for a caller.

    Args:
        rows: the generations.
        generation_id: id of the generation.
        identity: the caller.
        others: scopes that together reach the generations of other callers.

    Raises:
        GenerationNotFoundError: it does not exist, or belongs to another caller: the error is the
            same.
    """
    if identity.scopes.issuperset(others):
        return
    row = await rows.look_up(generation_id)
    if row is None or row.deleted or row.index.owner != identity.id:
        raise GenerationNotFoundError(generation_id)


def get_visible_owner(identity: Identity) -> str | None:
    """Return the owner whose generations a caller sees; None if it sees all."""
    return None if Scope.READ_ALL in identity.scopes else identity.id


def sees_content(identity: Identity) -> bool:
    """Return whether a caller may read texts and token ids."""
    return Scope.READ_CONTENT in identity.scopes
