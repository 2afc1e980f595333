"""Queue of jobs that is fair between callers: their turns come round, whatever each has waiting."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Job = TypeVar("Job")


class FairQueue(Generic[Job]):
    """Jobs of callers; the next one is the first of the caller whose turn it is.

    Callers take turns in the order in which they began to wait (round-robin), so that a caller with
    one job waits for at most one job of each other caller. The jobs of one caller keep their order.
    """

    def __init__(self) -> None:
        # In the order of their turns, which a dict keeps; no list is empty.
        self._jobs: dict[str, deque[Job]] = {}

    def __len__(self) -> int:
        """Return the number of jobs."""
        return sum(map(len, self._jobs.values()))

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the jobs, caller by caller."""
        return (job for jobs in self._jobs.values() for job in jobs)

    def append(self, job: Job, caller: str) -> None:
        """Add a job of a caller."""
        self._jobs.setdefault(caller, deque()).append(job)

    def get_next(self) -> Job:
        """Return the next job, which stays in the queue.

        Raises:
            IndexError: the queue is empty.
        """
        for jobs in self._jobs.values():
            return jobs[0]
        raise IndexError("the queue is empty")

    def pop_next(self) -> Job:
        """Remove and return the next job; the turn goes on to the next caller.

        Raises:
            IndexError: the queue is empty.
        """
        job = self.get_next()
        caller = next(iter(self._jobs))
        jobs = self._jobs.pop(caller)
        jobs.popleft()
        if jobs:
            self._jobs[caller] = jobs
        return job

    def remove_if(self, matches: Callable[[Job], bool]) -> None:
        """Remove all jobs that match; turns stay as they are."""
        left = {
            caller: deque(job for job in jobs if not matches(job))
            for caller, jobs in self._jobs.items()
        }
        self._jobs = {caller: jobs for caller, jobs in left.items() if jobs}
