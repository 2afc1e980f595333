"""The part of a store that retention works on, in SQL of both databases."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from whence_server.domain.retention import LabelPattern
from whence_server.journal.chain import Origin
from whence_server.journal.listing import PageKey
from whence_server.journal.retention import sql_queries
from whence_server.journal.retention.store import Candidate, RemovalLimits

P = ParamSpec("P")
T = TypeVar("T")


class SqlRetention:
    """Look-ups of retention in one log; any thread may call its methods.

    Attributes:
        writer: number of the log's writer.
    """

    writer: int

    def _read(
        self, function: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function with a connection whose statements see one state of the database."""
        raise NotImplementedError

    def read_candidates(
        self, pattern: LabelPattern | None, before_ns: int, beyond: PageKey | None, limit: int
    ) -> list[Candidate]:
        """Read generations that retention may delete, as `RetentionStore` says."""
        return self._read(
            sql_queries.read_candidates, self.writer, pattern, before_ns, beyond, limit
        )

    def agrees_with_entries(self, candidate: Candidate) -> bool:
        """Return whether a candidate's columns are those of its entries."""
        return self._read(sql_queries.agrees_with_entries, self.writer, candidate)

    def find_newest_start(self) -> int | None:
        """Return the newest start time of a generation, in Unix nanoseconds; None without one."""
        return self._read(sql_queries.find_newest_start, self.writer)

    def count_matching(self, patterns: tuple[LabelPattern, ...]) -> int:
        """Return the number of generations that match a pattern."""
        return self._read(sql_queries.count_matching, self.writer, patterns)

    def find_removable(self, limits: RemovalLimits) -> Origin | None:
        """Return the last of the oldest entries that can be removed, as `RetentionStore` says."""
        return self._read(sql_queries.find_removable, self.writer, limits)
