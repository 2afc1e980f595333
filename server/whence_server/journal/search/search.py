"""Search of a sentence in the recorded texts."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.journal import sql_lookup
from whence_server.journal.listing import digest_filter
from whence_server.journal.rows import GenerationRow, ListFilter
from whence_server.journal.search.budget import Budget
from whence_server.journal.search.candidates import find_candidates
from whence_server.journal.search.comparing import (
    ByteRange,
    Match,
    cut_excerpt,
    find_bytes,
    find_match,
)
from whence_server.journal.search.fingerprints import (
    LEAST_CHARACTERS,
    make_fingerprints,
    normalise,
)
from whence_server.journal.search.indexer import IndexedJournal, Indexer
from whence_server.journal.search.passages import Place
from whence_server.journal.search.texts import Part, RecordedText, find_step, read_texts

MAX_CHARACTERS = 2_000
"""Longest sentence, in characters."""
MAX_COMPARED = 200
"""Most generations whose texts are compared with the sentence."""
_MAX_AT_ONCE = 1
_MAX_FINGERPRINTS = 32
_MAX_EXAMINED = 4_000
_EXCERPT_CHARACTERS = 80
_NAME = (
    "SELECT CAST(generation_id AS BLOB) FROM generations WHERE writer = ? AND started_position = ?"
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A generation with the sentence, or most of it, in one of its texts.

    Attributes:
        row: the generation.
        found: text that has it.
        share: share of the sentence's trigrams that stand there; 1 for the sentence itself.
        bytes: where it stands, as a range of the text's UTF-8 bytes.
        excerpt: the text before it, itself, and the text after it.
        step: index of the step whose token begins it; None if that is not known.
    """

    row: GenerationRow
    found: RecordedText
    share: float
    bytes: ByteRange
    excerpt: tuple[str, str, str]
    step: int | None


class HitPage(NamedTuple):
    """One page of hits, exact ones first, then by their share, the newest first."""

    hits: list[Hit]
    next_token: str
    """"" on the last page."""
    is_cut: bool = False
    """True if not every generation that may have the sentence was compared with it."""


class _Compared(NamedTuple):
    place: Place
    row: GenerationRow
    found: RecordedText
    match: Match


class Search:
    """Search of the texts of a journal's generations, and the index that it needs.

    Args:
        journal: the journal.
    """

    def __init__(self, journal: IndexedJournal) -> None:
        self._tree = journal.tree
        # Lists and the transparency log read in the same threads.
        self._turn = asyncio.Semaphore(_MAX_AT_ONCE)
        self._reading: set[asyncio.Future[HitPage]] = set()
        self.indexer = Indexer(journal)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the index up to date within a block."""
        self.indexer.start()
        try:
            yield
        finally:
            await asyncio.gather(*self._reading, return_exceptions=True)
            await self.indexer.close()

    async def find(
        self, sentence: str, list_filter: ListFilter, *, limit: int, token: str = ""
    ) -> HitPage:
        """Return a page of the generations that contain a sentence, or most of it.

        Raises:
            InvalidRequestError: the sentence is too short or too long, or the token is not one of
                this search.
        """
        wanted = normalise(sentence)
        if not LEAST_CHARACTERS <= len(wanted) <= MAX_CHARACTERS:
            raise InvalidRequestError(
                FieldViolation(
                    "text",
                    f"must have from {LEAST_CHARACTERS} to {MAX_CHARACTERS} characters, not "
                    f"{len(wanted)}; spaces in a row count as one",
                )
            )
        digest = _digest(wanted, list_filter)
        first = _read_token(token, digest)

        budget = Budget()

        def read(connection: Any) -> HitPage:
            compared, is_cut = _compare_all(connection, wanted, list_filter, budget)
            shown = compared[first : first + limit]
            more = len(compared) > first + limit
            following = _make_token(first + limit, digest) if more else ""
            return HitPage([_make_hit(connection, it, budget) for it in shown], following, is_cut)

        await self._turn.acquire()
        reading = asyncio.ensure_future(self._tree.read_long(read))
        self._reading.add(reading)
        reading.add_done_callback(self._end_turn)
        try:
            # A caller that goes does not end the thread, and so not the turn.
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            budget.stop()
            raise

    def _end_turn(self, reading: "asyncio.Future[HitPage]") -> None:
        self._reading.discard(reading)
        self._turn.release()
        if not reading.cancelled():
            # The caller may have gone, and has no use for it.
            reading.exception()


def _compare_all(
    connection: Any, wanted: str, list_filter: ListFilter, budget: Budget
) -> tuple[list[_Compared], bool]:
    """Return the hits, and whether there may be others."""
    fingerprints = make_fingerprints(wanted)
    stride = -(-len(fingerprints) // _MAX_FINGERPRINTS)
    places, is_cut = find_candidates(connection, fingerprints[::stride], list_filter, budget)
    compared: list[_Compared] = []
    num_compared = 0
    for place in places[:_MAX_EXAMINED]:
        if budget.is_spent:
            break
        row = _load_row(connection, place)
        if row is None or row.deleted or row.foreign or not list_filter.matches(row.index):
            continue
        if num_compared == MAX_COMPARED:
            is_cut = True
            break
        compared += _compare(connection, wanted, place, row, budget)
        num_compared += 1
    compared.sort(key=lambda it: (it.match.share, it.row.index.start_time_ns), reverse=True)
    return compared, is_cut or budget.is_spent or len(places) > _MAX_EXAMINED


def _load_row(connection: Any, place: Place) -> GenerationRow | None:
    rows = connection.execute(_NAME, place).fetchall()
    if not rows:
        return None
    return sql_lookup.find_generation(connection, bytes(rows[0][0]).decode(errors="replace"))


def _compare(
    connection: Any, wanted: str, place: Place, row: GenerationRow, budget: Budget
) -> list[_Compared]:
    """Return the best match of a generation; none if it has only little of the sentence."""
    matches = []
    for found in read_texts(connection, place):
        if budget.is_spent:
            break
        budget.take(len(found.searched))
        match = find_match(wanted, normalise(found.searched))
        if match is not None:
            matches.append(_Compared(place, row, found, match))
    best = max(matches, key=lambda it: it.match.share, default=None)
    return [] if best is None else [best]


def _make_hit(connection: Any, compared: _Compared, budget: Budget) -> Hit:
    place, row, found, match = compared
    before = len(found.text[: found.searched_from].encode(errors="replace"))
    begin, end = find_bytes(found.searched, match)
    there = ByteRange(before + begin, before + end)
    step = None
    if found.part is Part.OUTPUT:
        step = find_step(connection, place, found.sequence, there.begin, budget)
    excerpt = cut_excerpt(found.text, there, _EXCERPT_CHARACTERS)
    return Hit(row, found, match.share, there, excerpt, step)


def _digest(wanted: str, list_filter: ListFilter) -> bytes:
    return hashlib.sha256(digest_filter(list_filter) + wanted.encode(errors="replace")).digest()[:8]


def _make_token(first: int, digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest + first.to_bytes(2)).decode()


def _read_token(token: str, digest: bytes) -> int:
    if not token:
        return 0
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != len(digest) + 2 or not raw.startswith(digest):
        raise InvalidRequestError(
            FieldViolation("page_token", "is no token that a search for the same text returned")
        )
    return int.from_bytes(raw[len(digest) :])
