"""Who is read and who decodes in the engine's next turn: bounds kept, first come first served.

The scheduler knows sizes, not tensors. A job is a prompt and the sequences that go on from it:
a generation, as a rule. It waits, is let in whole (all its sequences, at their full length), has
its prompt read in chunks, decodes, and gives back its room sequence by sequence.
"""

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from whence_server.domain.errors import GenerationFailedError

STEPS_REPEATED = 16
"""Tokens of one prompt that are read one by one in a turn: as many passes, while others wait."""


class Chunk(NamedTuple):
    """A piece of a prompt to read in this turn."""

    job_id: str
    num_tokens: int
    is_last: bool


@dataclass(slots=True)
class _Job:
    job_id: str
    num_prompt_tokens: int
    num_cached_tokens: int
    """Prompt and new tokens of one sequence, at the most."""
    num_sequences: int
    num_whole: int
    """Prompt tokens that are read in one pass, where prompts are not read in pieces."""
    token_cost: int = 1
    """How many of a turn's tokens one of the prompt's counts for."""
    num_read: int = 0
    """Prompt tokens that earlier turns' chunks hold."""

    @property
    def num_left(self) -> int:
        """Prompt tokens still to be read."""
        return self.num_prompt_tokens - self.num_read


class Scheduler:
    """Admits, orders and bounds the work of one engine.

    All rows of the batched cache are as wide as the widest, so what is bounded is the number of
    sequences that are in times the length of the longest: the memory that is really taken.

    Args:
        max_batch_size: sequences that decode together.
        max_cache_tokens: positions in the cache, padding included.
        prefill_chunk_tokens: prompt tokens read in one turn, so that running streams wait for
            no more than that; several prompts share it.
        whole_prompts: whether a prompt cannot be read in pieces. A longer one then has a turn
            for itself.
    """

    def __init__(
        self,
        max_batch_size: int,
        max_cache_tokens: int,
        prefill_chunk_tokens: int,
        *,
        whole_prompts: bool = False,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_cache_tokens = max_cache_tokens
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._whole_prompts = whole_prompts
        self._waiting: deque[_Job] = deque()
        self._prefilling: list[_Job] = []
        """Those whose prompts are being read, in the order in which they were let in."""
        self._admitted: dict[str, _Job] = {}
        """Those that hold room: all that are being read, and all that decode."""

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits and nobody is inside."""
        return not self._waiting and not self._admitted

    @property
    def job_ids(self) -> list[str]:
        """Jobs that hold room, in the order in which they were let in."""
        return list(self._admitted)

    @property
    def num_sequences(self) -> int:
        """Sequences that hold room."""
        return sum(job.num_sequences for job in self._admitted.values())

    @property
    def num_cache_tokens(self) -> int:
        """Positions that are spoken for, padding included."""
        return self._count_cache_tokens(*self._admitted.values())

    def admit(
        self,
        job_id: str,
        num_prompt_tokens: int,
        num_new_tokens: int,
        num_sequences: int,
        num_whole: int | None = None,
        *,
        token_cost: int = 1,
    ) -> None:
        """Put a job at the end of the queue.

        Args:
            job_id: its name.
            num_prompt_tokens: to be read.
            num_new_tokens: of one sequence, at the most.
            num_sequences: that go on from the prompt.
            num_whole: how many of the prompt's tokens are read in one pass where prompts are
                read whole; the rest is read token by token. None for all.
            token_cost: how many of the tokens that are read in one turn one of the prompt's
                counts for.

        Raises:
            GenerationFailedError: it would not fit even if it were alone.
        """
        length = num_prompt_tokens + num_new_tokens
        if num_sequences > self._max_batch_size:
            raise GenerationFailedError(
                "BATCH_TOO_SMALL",
                f"{num_sequences} sequences are more than this server decodes together: "
                f"{self._max_batch_size} (--max-batch-size)",
            )
        if num_sequences * length > self._max_cache_tokens:
            raise GenerationFailedError(
                "CACHE_TOO_SMALL",
                f"{num_sequences} sequences of {num_prompt_tokens} prompt and {num_new_tokens} "
                f"new tokens do not fit this server's cache of {self._max_cache_tokens} tokens "
                "(--max-cache-tokens)",
            )
        whole = num_prompt_tokens if num_whole is None else num_whole
        self._waiting.append(
            _Job(job_id, num_prompt_tokens, length, num_sequences, whole, token_cost)
        )

    def take_chunks(self) -> list[Chunk]:
        """Which prompts to read in this turn; whoever decodes does so in every turn.

        The caller reads what it is told to, or calls `leave`.
        """
        if self._whole_prompts:
            return self._take_whole_prompts()
        while self._admit_next():
            pass
        return self._share_out()

    def _share_out(self) -> list[Chunk]:
        """Half a turn's tokens go to the prompt that was let in first, so that it gets through.

        The rest goes to whichever has the fewest left: a short prompt does not wait until a long
        one has been read.
        """
        if not self._prefilling:
            return []
        budget = self._prefill_chunk_tokens
        first = self._prefilling[0]
        shares = {first.job_id: min(first.num_left, max(budget // 2 // first.token_cost, 1))}
        budget -= shares[first.job_id] * first.token_cost
        for job in sorted(self._prefilling, key=lambda job: job.num_left):
            share = shares.setdefault(job.job_id, 0)
            more = min(job.num_left - share, max(budget, 0) // job.token_cost)
            shares[job.job_id] += more
            budget -= more * job.token_cost
        chunks = [self._take_chunk(job, shares[job.job_id]) for job in self._prefilling]
        self._prefilling = [job for job in self._prefilling if job.num_left]
        # Whoever can start does so before the others are read.
        return sorted(
            (chunk for chunk in chunks if chunk.num_tokens), key=lambda chunk: not chunk.is_last
        )

    def _take_whole_prompts(self) -> list[Chunk]:
        """Whole prompts: as many as a turn's tokens are enough for, or one longer one alone.

        Before them a few more of the tokens that are read one by one.
        """
        repeated = [
            self._take_chunk(job, min(job.num_left, STEPS_REPEATED)) for job in self._prefilling
        ]
        chunks: list[Chunk] = []
        budget = self._prefill_chunk_tokens
        while self._waiting:
            num_tokens = self._waiting[0].num_whole
            if chunks and num_tokens > budget:
                break
            if not self._admit_next():
                break
            budget -= num_tokens
            chunks.append(self._take_chunk(self._prefilling[-1], num_tokens))
        self._prefilling = [job for job in self._prefilling if job.num_left]
        return [*repeated, *chunks]

    @staticmethod
    def _take_chunk(job: _Job, num_tokens: int) -> Chunk:
        job.num_read += num_tokens
        return Chunk(job.job_id, num_tokens, is_last=job.num_left == 0)

    def leave(self, job_id: str) -> None:
        """Take a job out, wherever it is; one that is not known is ignored."""
        if self._admitted.pop(job_id, None) is None:
            kept = [job for job in self._waiting if job.job_id != job_id]
            self._waiting = deque(kept)
        self._prefilling = [job for job in self._prefilling if job.job_id != job_id]

    def leave_sequence(self, job_id: str) -> None:
        """Return back the room of one of a job's sequences."""
        job = self._admitted[job_id]
        job.num_sequences -= 1
        if job.num_sequences == 0:
            self.leave(job_id)

    def _admit_next(self) -> bool:
        """Let in the first in the queue if there is room; nobody overtakes it."""
        if not self._waiting:
            return False
        job = self._waiting[0]
        if self.num_sequences + job.num_sequences > self._max_batch_size:
            return False
        if self._count_cache_tokens(job, *self._admitted.values()) > self._max_cache_tokens:
            return False
        self._waiting.popleft()
        self._admitted[job.job_id] = job
        self._prefilling.append(job)
        return True

    @staticmethod
    def _count_cache_tokens(*jobs: _Job) -> int:
        longest = max((job.num_cached_tokens for job in jobs), default=0)
        return longest * sum(job.num_sequences for job in jobs)
