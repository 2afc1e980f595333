"""A step's table of candidates, made of the entries that an upstream sends."""

from collections.abc import Iterable
from typing import NamedTuple

from whence_server.engines.upstream.exchange import UpstreamCandidate


class Table(NamedTuple):
    """Candidates of a step, and the chosen token's rank among them."""

    candidates: tuple[UpstreamCandidate, ...]
    rank: int | None
    """0 for the most likely token; None if the chosen token is not among them."""


def make_table(
    entries: Iterable[UpstreamCandidate],
    chosen: UpstreamCandidate | None,
    num_wanted: int,
    num_asked: int,
    *,
    displaces: bool = False,
) -> Table:
    """Sort a step's entries, and leave out the chosen token where it is none of the most likely.

    Args:
        entries: entries with their logprobs, in any order.
        chosen: the chosen token; None if the upstream does not say.
        num_wanted: number of candidates that the record has.
        num_asked: number that the upstream was asked for; further entries are the chosen token's.
        displaces: True if the chosen token takes the place of a more likely one where it is none
            of the most likely. Ask for one entry more than is wanted, if it can be had.
    """
    ordered = sorted(entries, key=lambda entry: -entry.logprob)
    num_trusted = num_asked - 1 if displaces else num_asked
    if (
        chosen is not None
        and ordered
        and len(ordered) > num_trusted
        and _is_same(ordered[-1], chosen)
    ):
        ordered.pop()
    candidates = tuple(ordered[:num_wanted])
    rank = None
    if chosen is not None:
        rank = next(
            (place for place, entry in enumerate(candidates) if _is_same(entry, chosen)), None
        )
    return Table(candidates, rank)


def _is_same(entry: UpstreamCandidate, chosen: UpstreamCandidate) -> bool:
    if entry.token_id is not None and chosen.token_id is not None:
        return entry.token_id == chosen.token_id
    return entry.text == chosen.text
