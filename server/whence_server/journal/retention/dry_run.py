"""Plan of `whence-server retention --dry-run`: deletions by a policy, without changing a byte."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.retention import (
    LabelAge,
    LabelPattern,
    RetentionPolicy,
    spell_size,
)
from whence_server.journal.listing import PageKey
from whence_server.journal.retention import sql_queries
from whence_server.journal.retention.judging import (
    Action,
    Moment,
    Verdict,
    judge_age,
    judge_size,
)
from whence_server.journal.retention.pages_in_use import measure_use
from whence_server.journal.retention.spelling import spell_policy
from whence_server.journal.retention.store import Candidate
from whence_server.journal.schema import MIGRATIONS, check_version
from whence_server.journal.sealing.content_check import KeysToVerify
from whence_server.journal.sealing.sealed_logs import has_sealed

_WRITER = 1
_BUSY_MS = 10_000
_PAGE = 500
_EVER = 2**62
_DELETIONS = {Action.DELETE, Action.DELETE_UNREAD}
_CONTENT = """
    SELECT coalesce(sum(length(payload)), 0) FROM entries INDEXED BY entries_by_generation
    WHERE writer = ? AND generation = ?
"""


@dataclass(slots=True)
class Plan:
    """Generations that retention would delete, in numbers."""

    used_bytes: int
    num_held: int = 0
    num_waiting: int = 0
    num_unread: int = 0
    generations: Counter[str] = field(default_factory=Counter)
    """Number of generations to delete, by the setting that says so."""
    content_bytes: Counter[str] = field(default_factory=Counter)
    """Bytes of their content."""
    has_rules: bool = True

    def describe(self) -> Iterator[str]:
        """Yield the lines for people."""
        yield f"{spell_size(self.used_bytes)} in use"
        if not self.has_rules:
            yield "no setting deletes anything: give --retain, --retain-label or --retain-bytes"
        for rule, number in self.generations.items():
            content = spell_size(self.content_bytes[rule])
            yield f"{rule}: would delete {_count(number)} with {content} of content"
        if self.has_rules and not self.generations:
            yield "nothing would be deleted"
        if self.num_unread:
            yield f"{_count(self.num_unread)} of them not read by every export"
        if self.num_waiting:
            yield f"kept for an export that has not read them: {_count(self.num_waiting)}"
        if self.num_held:
            yield f"held by --hold-label: {_count(self.num_held)}"


def plan_retention(
    data_dir: Path, policy: RetentionPolicy, keys: KeysToVerify | None = None
) -> Plan:
    """Judge every generation of a journal by a policy; a server may use the journal.

    All cursors in the journal count as exports. Running generations count as ended.

    Args:
        data_dir: directory of the journal.
        policy: the policy, with labels in clear.
        keys: keys of a journal whose labels are encrypted.

    Raises:
        ConfigurationError: there is no journal, it cannot be read, or its labels need keys.
    """
    if keys is not None:
        policy = spell_policy(policy, keys.spell_label)
    path = data_dir / "journal.db"
    if not path.is_file():
        raise ConfigurationError(f"{data_dir} holds no journal: it has no file journal.db")
    try:
        connection: Any = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_busy_timeout(_BUSY_MS)
            if check_version(connection) < len(MIGRATIONS):
                raise ConfigurationError(
                    f"{path} was written by an earlier version: start a server on it once, which "
                    "brings it up to date"
                )
            with connection:
                require_readable_labels(connection, policy, keys)
                return make_plan(connection, _WRITER, policy, measure_use(connection))
        finally:
            connection.close()
    except apsw.Error as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def require_readable_labels(
    connection: Any, policy: RetentionPolicy, keys: KeysToVerify | None
) -> None:
    """Refuse a policy about labels that are encrypted, without their keys.

    Raises:
        ConfigurationError: the journal's labels are encrypted.
    """
    if keys is None and (policy.label_ages or policy.holds) and has_sealed(connection):
        raise ConfigurationError(
            "the journal's labels are encrypted: give their master key with --journal-key"
        )


def make_plan(connection: Any, writer: int, policy: RetentionPolicy, used_bytes: int) -> Plan:
    """Judge every generation of a log by a policy.

    Args:
        connection: reads one state of the database.
        writer: number of the log's writer.
        policy: the policy, with labels as they are stored.
        used_bytes: size of the log.
    """
    plan = Plan(used_bytes, has_rules=policy.deletes)
    plan.num_held = sql_queries.count_matching(connection, writer, policy.holds)
    ((read_position,),) = connection.execute(
        "SELECT coalesce((SELECT min(position) FROM cursors WHERE writer = ?), ?)", (writer, _EVER)
    ).fetchall()
    moment = Moment(time.time_ns(), read_position, lambda _: _EVER)
    judged = _Judged(connection, writer, plan)
    sources: list[LabelAge | None] = list(policy.label_ages)
    if policy.age_s is not None:
        sources.append(None)
    for rule in sources:
        pattern = None if rule is None else rule.pattern
        for candidate in judged.walk(pattern, moment.now_ns):
            if policy.find_label_age(candidate.labels or {}) == rule:
                judged.note(candidate, judge_age(candidate, policy, moment))
    if policy.max_bytes:
        _plan_by_size(judged, policy, moment)
    return plan


def _plan_by_size(judged: "_Judged", policy: RetentionPolicy, moment: Moment) -> None:
    """Plan the oldest generations until the rest is below the limit."""
    plan = judged.plan
    for candidate in judged.walk(None, _EVER):
        used_bytes = plan.used_bytes - plan.content_bytes.total()
        if used_bytes <= policy.max_bytes:
            return
        if judged.actions.get(candidate.generation_id) not in _DELETIONS:
            judged.note(candidate, judge_size(candidate, policy, moment, used_bytes))


@dataclass(slots=True)
class _Judged:
    """Generations of one log with the decisions about them, which are counted in a plan."""

    connection: Any
    writer: int
    plan: Plan
    actions: dict[str, Action] = field(default_factory=dict)

    def walk(self, pattern: LabelPattern | None, before_ns: int) -> Iterator[Candidate]:
        """Yield the generations of the log, oldest first."""
        beyond: PageKey | None = None
        while page := sql_queries.read_candidates(
            self.connection, self.writer, pattern, before_ns, beyond, _PAGE
        ):
            yield from page
            beyond = page[-1].key

    def note(self, candidate: Candidate, verdict: Verdict) -> None:
        """Count a decision."""
        plan = self.plan
        # Size may judge again what waits by age.
        plan.num_waiting -= self.actions.get(candidate.generation_id) is Action.WAIT
        self.actions[candidate.generation_id] = verdict.action
        plan.num_waiting += verdict.action is Action.WAIT
        plan.num_unread += verdict.action is Action.DELETE_UNREAD
        if verdict.action in _DELETIONS:
            plan.generations[verdict.rule] += 1
            bindings = (self.writer, candidate.started_position)
            ((num_bytes,),) = self.connection.execute(_CONTENT, bindings).fetchall()
            plan.content_bytes[verdict.rule] += int(num_bytes)


def _count(number: int) -> str:
    return f"{number} generation" + ("" if number == 1 else "s")
