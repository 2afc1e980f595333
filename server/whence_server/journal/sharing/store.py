"""Interface of a database that several servers share, each with a log of its own."""

from collections.abc import Callable, Collection
from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from whence_server.domain.entries import Entry
from whence_server.journal.store import Store


class Change(Enum):
    """Kind of a change that another server makes."""

    ENTRIES = 1
    ERRANDS = 2
    """Somebody asks something of this server."""


class Errand(NamedTuple):
    """A deletion that one server asks of the server that holds the log."""

    number: int
    generation_id: str
    caller_id: str


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store whose log only the holder of its lease may write."""

    @property
    def lease_s(self) -> float:
        """Seconds without `renew` after which another server takes the log over."""

    @property
    def writer(self) -> int:
        """Number of the log's writer."""

    def renew(self) -> None:
        """Show that this server lives; called from the writer's thread.

        Raises:
            LeaseLostError: another server has taken the log over.
        """

    def release_id(self, generation_id: str) -> None:
        """Give an id back, with which no generation has begun.

        Raises:
            JournalError: the database is away; a later `renew` gives it back.
        """

    def release_later(self, generation_id: str) -> None:
        """Give an id back with the next `renew`, unless it is taken again; any thread."""

    def find_writer(self, generation_id: str) -> int:
        """Return the number of the writer of a generation's log.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """

    def listen(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Call a function, in a thread, after each change by others; return what ends it."""

    def ask_deletion(self, writer: int, generation_id: str, caller_id: str) -> int:
        """Ask the holder of a log to delete a generation; return the errand's number."""

    def list_errands(self) -> list[Errand]:
        """Return what others ask of the holder of this log."""

    def end_errand(self, number: int, outcome: str) -> None:
        """Answer an errand of this log."""

    def read_outcome(self, number: int) -> str | None:
        """Return the answer to an errand; None if there is none yet."""

    def forget_errand(self, number: int) -> None:
        """Remove an errand that was answered, or that nobody waits for any more."""

    def read_log(
        self, writer: int, after_position: int, *, limit: int, max_bytes: int
    ) -> list[Entry]:
        """Read entries of all kinds of one log by position, up to either bound."""

    def take_over(self, skipped: Collection[int] = ()) -> "SharedStore | None":
        """Take a log whose server died or left something to do; None if there is none.

        Args:
            skipped: writers whose logs it leaves alone.
        """

    def list_idle_logs(self) -> list[int]:
        """Return the writers of logs that no server holds and that have entries."""

    def take_idle(self, writer: int) -> "SharedStore | None":
        """Take a log that no server holds; None if a server has it by now."""

    def end_lease(self) -> None:
        """Give the log back, in which nothing is left to do; called from the writer's thread."""
