"""The task that applies retention beside running generations, in bounded pieces of work."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

from whence_server.domain.errors import JournalError
from whence_server.domain.retention import (
    DeletionCause,
    LabelAge,
    LabelPattern,
    RetentionPolicy,
    spell_size,
)
from whence_server.journal.deletion import Deletion
from whence_server.journal.listing import PageKey
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.retention.batch import BATCH_ENTRIES, Batch
from whence_server.journal.retention.clock import PositionAges, RetentionClock
from whence_server.journal.retention.judging import (
    Action,
    Moment,
    judge_age,
    judge_size,
)
from whence_server.journal.retention.stats import RetentionStats
from whence_server.journal.retention.store import Candidate, RemovalLimits, RetentionStore

_log = logging.getLogger(__name__)

INTERVAL_S = 60.0
_SECOND_NS = 1_000_000_000
_DAY_S = 86_400
_PAGE = 500
_MOST_REMOVED, _LEAST_REMOVED = 5_000, 1_000
# Records of calls and deletions are kept for as long as content, else for this time.
_DEFAULT_REMAINS_S = 30 * _DAY_S
_REST = 3.0
"""Pause after a batch, as a multiple of its duration: retention takes a quarter of one thread."""
_EVER_NS = 2**62
_MAX_LOGGED = 1_000


class SweptJournal(NamedTuple):
    """Parts of a journal that retention works on."""

    log: Log
    store: RetentionStore
    readers: Readers
    deletion: Deletion
    get_read_position: Callable[[], int]
    """Returns the position up to which every export has read."""
    note_sweep: Callable[[], None]
    """Called after generations were deleted."""


class Sweeper:
    """Deletes what the policy no longer keeps; every method belongs to the event loop's thread.

    Attributes:
        clock: clock by which ages are judged; None before the first sweep.
        stats: counters and figures.
    """

    def __init__(
        self,
        journal: SweptJournal,
        policy: RetentionPolicy,
        *,
        clock: RetentionClock | None = None,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Apply a policy to a journal; the clocks are the system's, except in tests.

        Args:
            journal: the journal.
            policy: the policy, with labels as they are stored.
            clock: clock of another sweeper of this process; None for one of its own, which counts
                from the journal's newest generation.
            wall: Unix time in nanoseconds.
            monotonic: elapsed time in nanoseconds.
        """
        self.clock = clock
        self.stats = RetentionStats()
        self._journal = journal
        self._policy = policy
        self._wall, self._monotonic = wall, monotonic
        self._ages = PositionAges(journal.log.committed_position, monotonic)
        self._removed_ns: int | None = None
        """Time of the last removal of remains, by the monotonic clock."""
        self._is_over_reported = False
        self._num_waiting = 0
        self._damaged: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Sweep once a minute while the context lasts."""
        task = asyncio.create_task(self._run(), name="retention")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except JournalError:
                pass  # The writer reports its own failures, and tries again.
            except Exception:  # noqa: BLE001 - one sweep must not end all later ones
                _log.exception("retention failed, and is tried again in %.0f s", INTERVAL_S)
            await asyncio.sleep(INTERVAL_S)

    async def sweep(self) -> None:
        """Delete everything that is due, and remove the oldest remains.

        Raises:
            JournalError: nothing can be written, at present or any more.
        """
        policy, store = self._policy, self._journal.store
        before = self.stats.deleted.total(), self.stats.num_unread
        self._num_waiting = 0
        self._ages.note(self._journal.log.committed_position)
        await self._measure()
        self.stats.num_held = await self._journal.readers.run_heavy(
            store.count_matching, policy.holds
        )
        if policy.deletes:
            await self._delete_by_age()
            await self._remove(policy.longest_age_s or _DEFAULT_REMAINS_S)
            if policy.max_bytes and self.stats.used_bytes > policy.max_bytes:
                await self._delete_by_size()
            self._report_size()
        self.stats.num_waiting = self._num_waiting
        self._report(*before)

    async def _measure(self) -> None:
        self.stats.used_bytes = await self._journal.readers.run_heavy(
            self._journal.store.measure_use
        )

    async def _observe(self) -> Moment:
        if self.clock is None:
            newest_ns = await self._journal.readers.run_heavy(self._journal.store.find_newest_start)
            self.clock = RetentionClock(newest_ns, self._wall, self._monotonic)
        return Moment(
            self.clock.read(), self._journal.get_read_position(), self._ages.find_position
        )

    # ---- by age ----

    async def _delete_by_age(self) -> None:
        for rule in self._policy.label_ages:
            await self._delete_older(rule, rule.age_s)
        if self._policy.age_s is not None:
            await self._delete_older(None, self._policy.age_s)

    async def _delete_older(self, rule: LabelAge | None, age_s: int) -> None:
        """Delete the generations whose age a rule about labels decides, or the general one."""
        pattern = None if rule is None else rule.pattern
        moment, batch = await self._observe(), Batch()
        before_ns = moment.now_ns - age_s * _SECOND_NS
        async with aclosing(self._walk(pattern, before_ns)) as candidates:
            async for candidate in candidates:
                if self._policy.find_label_age(candidate.labels or {}) != rule:
                    continue
                verdict = judge_age(candidate, self._policy, moment)
                self._num_waiting += verdict.action is Action.WAIT
                if verdict.action in {Action.DELETE, Action.DELETE_UNREAD}:
                    batch.add(candidate, DeletionCause.AGE, verdict)
                if batch.is_full:
                    await self._delete(batch)
                    batch = Batch()
        await self._delete(batch)

    async def _walk(
        self, pattern: LabelPattern | None, before_ns: int
    ) -> AsyncGenerator[Candidate, None]:
        """Yield the generations that have ended, oldest first."""
        beyond: PageKey | None = None
        while page := await self._journal.readers.run_heavy(
            self._journal.store.read_candidates, pattern, before_ns, beyond, _PAGE
        ):
            # Now, and not when its turn comes: one that ends meanwhile has a later end than the
            # page says, which an export may not have read.
            ended = [c for c in page if self._journal.log.get_live(c.generation_id) is None]
            for candidate in ended:
                yield candidate
            beyond = page[-1].key

    async def _delete(self, batch: Batch) -> None:
        if not batch.candidates:
            return
        started_s = time.perf_counter()
        sound = await self._journal.readers.run_heavy(self._list_sound, batch.candidates)
        requests = [batch.requests[generation_id] for generation_id in sound]
        for request in await self._journal.deletion.delete_all(requests):
            self.stats.deleted[request.cause] += 1
            self.stats.num_unread += request.generation_id in batch.unread
        self._journal.note_sweep()
        await self._measure()
        await asyncio.sleep(_REST * (time.perf_counter() - started_s))

    def _list_sound(self, candidates: list[Candidate]) -> list[str]:
        """Return the ids of those whose columns are true: no column alone deletes anything."""
        sound = []
        for candidate in candidates:
            if self._journal.store.agrees_with_entries(candidate):
                sound.append(candidate.generation_id)
            elif candidate.generation_id not in self._damaged and len(self._damaged) < _MAX_LOGGED:
                self._damaged.add(candidate.generation_id)
                _log.error(
                    "retention keeps generation %s: its columns are not those of its entries; run "
                    "`whence-server verify`",
                    candidate.generation_id,
                )
        return sound

    # ---- by size ----

    async def _delete_by_size(self) -> None:
        await self._remove(_DAY_S)
        policy, moment = self._policy, await self._observe()
        batch = await self._make_sized_batch()
        async with aclosing(self._walk(None, _EVER_NS)) as candidates:
            async for candidate in candidates:
                if self.stats.used_bytes <= policy.max_bytes:
                    break
                verdict = judge_size(candidate, policy, moment, self.stats.used_bytes)
                self._num_waiting += verdict.action is Action.WAIT
                if verdict.action in {Action.DELETE, Action.DELETE_UNREAD}:
                    batch.add(candidate, DeletionCause.SIZE, verdict)
                if batch.is_full:
                    await self._delete(batch)
                    await self._remove(_DAY_S)
                    batch = await self._make_sized_batch()
        if self.stats.used_bytes > policy.max_bytes:
            await self._delete(batch)
            await self._remove(_DAY_S)

    def _report_size(self) -> None:
        policy = self._policy
        is_over = bool(policy.max_bytes) and self.stats.used_bytes > policy.max_bytes
        if is_over and not self._is_over_reported:
            _log.warning(
                "the journal has %s in use, more than --retain-bytes %s, and nothing more can be "
                "deleted: the rest runs, is held, is not read by an export, or is what deletions "
                "leave for a day",
                spell_size(self.stats.used_bytes),
                spell_size(policy.max_bytes),
            )
        self._is_over_reported = is_over

    async def _make_sized_batch(self) -> Batch:
        """Return a batch of about as many entries as have to go, so that no more are deleted."""
        journal, used_bytes = self._journal, self.stats.used_bytes
        origin = await journal.readers.run_heavy(journal.store.read_origin)
        num_entries = journal.log.committed_position - (origin.position if origin else 0)
        share = (used_bytes - self._policy.max_bytes) / max(used_bytes, 1)
        return Batch(min(BATCH_ENTRIES, max(int(share * num_entries), 1)))

    # ---- remains ----

    async def _remove(self, age_s: int) -> None:
        """Remove the oldest entries whose content is gone; records of calls after an age."""
        journal = self._journal
        while True:
            moment = await self._observe()
            unread_ns = self._policy.unread_s * _SECOND_NS
            before_ns = moment.now_ns - age_s * _SECOND_NS
            # Also while the journal is too large: an audit is kept for as long as content.
            audit_age_s = max(age_s, self._policy.longest_age_s or _DEFAULT_REMAINS_S)
            limits = RemovalLimits(
                before_ns,
                moment.now_ns - audit_age_s * _SECOND_NS,
                moment.read_position,
                unread_ns,
                _MOST_REMOVED,
            )
            origin = await journal.readers.run_heavy(journal.store.find_removable, limits)
            if origin is None:
                return
            present = await journal.readers.run_heavy(journal.store.read_origin)
            num_removed = origin.position - (present.position if present else 0)
            if num_removed < _LEAST_REMOVED and not self._is_removal_due():
                return
            started_s = time.perf_counter()
            await journal.deletion.remove(origin)
            self._removed_ns = self._monotonic()
            await self._measure()
            await asyncio.sleep(_REST * (time.perf_counter() - started_s))

    def _is_removal_due(self) -> bool:
        """Return whether few entries are removed too: a quiet server keeps them no longer."""
        last_ns = self._removed_ns
        return last_ns is None or self._monotonic() - last_ns >= _DAY_S * _SECOND_NS

    def _report(self, num_deleted_before: int, num_unread_before: int) -> None:
        num_deleted = self.stats.deleted.total() - num_deleted_before
        num_unread = self.stats.num_unread - num_unread_before
        if num_deleted:
            _log.info(
                "retention deleted %d generations; %s are in use",
                num_deleted,
                spell_size(self.stats.used_bytes),
            )
        if num_unread:
            _log.warning(
                "retention deleted %d generations that an export had not read: it is behind for "
                "longer than --retain-unread allows, or the journal is too large",
                num_unread,
            )
