"""Policies for labels as a store has them: in clear, or as digests."""

from collections.abc import Callable, Sequence

from whence_server.domain.retention import ANY_VALUE, LabelPattern, RetentionPolicy
from whence_server.journal.sealing.forms import StoredLabel


def spell_policy(
    policy: RetentionPolicy, spell_label: Callable[[str, str | None], list[StoredLabel]]
) -> RetentionPolicy:
    """Return a policy whose patterns match stored labels.

    Args:
        policy: policy with labels as callers give them.
        spell_label: the method of the store's `Forms`.
    """

    def spell(pattern: LabelPattern) -> list[LabelPattern]:
        value = None if pattern.value == ANY_VALUE else pattern.value
        return [
            LabelPattern(stored.name, ANY_VALUE if stored.value is None else stored.value)
            for stored in spell_label(pattern.name, value)
        ]

    return policy.respell(spell)


def spell_holds(
    holds: Sequence[LabelPattern], spell_label: Callable[[str, str | None], list[StoredLabel]]
) -> tuple[LabelPattern, ...]:
    """Return holds in both spellings: as callers give labels, and as the store has them."""
    stored = spell_policy(RetentionPolicy(holds=tuple(holds)), spell_label).holds
    return tuple(dict.fromkeys((*holds, *stored)))
