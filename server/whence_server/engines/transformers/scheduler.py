"""Scheduler of the engine: admission within limits, callers in turn, and prefill chunks.

The scheduler knows sizes and no tensors. A job is a prompt and the sequences that continue it,
usually one generation. A job waits, is admitted with all its sequences at their full length, has
its prompt read in chunks, decodes, and frees its cache sequence by sequence.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from whence_server.domain.errors import GenerationFailedError
from whence_server.engines.transformers.fair_queue import FairQueue

STEPS_REPEATED = 16
"""Tokens read one by one in a turn for one prompt; each takes a forward pass."""


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
    """Cache positions that one sequence needs at most: prompt and new tokens."""
    num_sequences: int
    num_whole: int
    """Prompt tokens that are read in one pass, if prompts are not read in chunks."""
    token_cost: int = 1
    """Weight of one prompt token in `prefill_chunk_tokens`: above 1 with recorded candidates."""
    num_read: int = 0
    """Prompt tokens in the chunks of earlier turns."""

    @property
    def num_left(self) -> int:
        """Prompt tokens still to read."""
        return self.num_prompt_tokens - self.num_read


class Scheduler:
    """Scheduler of one engine's jobs.

    All rows of the batched cache are as wide as the longest, so that the limit applies to the
    number of admitted sequences times the length of the longest, which is the memory used.

    Args:
        max_batch_size: sequences that decode together.
        max_cache_tokens: positions in the cache, padding included.
        prefill_chunk_tokens: prompt tokens read in one turn, shared by all prompts; bounds the
            delay of running streams.
        whole_prompts: True reads each prompt in one pass; a prompt longer than
            `prefill_chunk_tokens` then has a turn of its own.
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
        self._waiting: FairQueue[_Job] = FairQueue()
        self._prefilling: list[_Job] = []
        """Jobs whose prompts are being read, in the order of admission."""
        self._admitted: dict[str, _Job] = {}
        """Jobs that hold cache: all in prefill and all that decode."""

    @property
    def is_idle(self) -> bool:
        """True if no job waits and none is admitted."""
        return not self._waiting and not self._admitted

    @property
    def job_ids(self) -> list[str]:
        """Ids of the admitted jobs, in the order of admission."""
        return list(self._admitted)

    @property
    def num_sequences(self) -> int:
        """Number of admitted sequences."""
        return sum(job.num_sequences for job in self._admitted.values())

    @property
    def num_cache_tokens(self) -> int:
        """Reserved positions of the cache, padding included."""
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
        caller: str = "",
    ) -> None:
        """Append a job to the queue.

        Args:
            job_id: id of the job.
            num_prompt_tokens: number of prompt tokens.
            num_new_tokens: largest number of new tokens of one sequence.
            num_sequences: number of sequences that continue the prompt.
            num_whole: number of prompt tokens that are read in one pass if prompts are read
                whole; the rest is read token by token. None for all.
            token_cost: number of a turn's tokens that one prompt token counts for.
            caller: id of the caller; callers take turns.

        Raises:
            GenerationFailedError: the job would not fit even alone.
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
            _Job(job_id, num_prompt_tokens, length, num_sequences, whole, token_cost), caller
        )

    def list_prefilling(self) -> list[str]:
        """Return the ids of the jobs that `take_chunks` would share this turn out among.

        The caller may `skip` tokens of them. Empty if prompts are read whole.
        """
        if self._whole_prompts:
            return []
        while self._admit_next():
            pass
        return [job.job_id for job in self._prefilling]

    def skip(self, job_id: str, num_tokens: int) -> None:
        """Count prompt tokens as read that need not be; at least one has to be left."""
        self._admitted[job_id].num_read += num_tokens

    def take_chunks(self, held: Collection[str] = ()) -> list[Chunk]:
        """Return the prompt chunks to read in this turn; the caller reads them or calls `leave`.

        Args:
            held: ids of jobs that get no chunk in this turn; ignored if prompts are read whole.
        """
        if self._whole_prompts:
            return self._take_whole_prompts()
        while self._admit_next():
            pass
        return self._share_out([job for job in self._prefilling if job.job_id not in held])

    def _share_out(self, jobs: list[_Job]) -> list[Chunk]:
        """Return chunks of the prompts of these jobs, within a turn's budget.

        Half the budget goes to the prompt that was admitted first, so that it cannot starve. The
        rest goes to the prompts with the fewest tokens left, so that a short prompt does not wait
        for a long one.
        """
        if not jobs:
            return []
        budget = self._prefill_chunk_tokens
        first = jobs[0]
        shares = {first.job_id: min(first.num_left, max(budget // 2 // first.token_cost, 1))}
        budget -= shares[first.job_id] * first.token_cost
        for job in sorted(jobs, key=lambda job: job.num_left):
            share = shares.setdefault(job.job_id, 0)
            more = min(job.num_left - share, max(budget, 0) // job.token_cost)
            shares[job.job_id] += more
            budget -= more * job.token_cost
        chunks = [self._take_chunk(job, shares[job.job_id]) for job in jobs]
        self._prefilling = [job for job in self._prefilling if job.num_left]
        # Chunks that complete a prompt are read first, so that its sequences start earlier.
        return sorted(
            (chunk for chunk in chunks if chunk.num_tokens), key=lambda chunk: not chunk.is_last
        )

    def _take_whole_prompts(self) -> list[Chunk]:
        """Return whole prompts within a turn's budget, or a single longer one.

        Before them come chunks of tokens that are read one by one.
        """
        repeated = [
            self._take_chunk(job, min(job.num_left, STEPS_REPEATED)) for job in self._prefilling
        ]
        chunks: list[Chunk] = []
        budget = self._prefill_chunk_tokens
        while self._waiting:
            num_tokens = self._waiting.get_next().num_whole
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
        """Remove a job, waiting or admitted; unknown ids are ignored."""
        if self._admitted.pop(job_id, None) is None:
            self._waiting.remove_if(lambda job: job.job_id == job_id)
        self._prefilling = [job for job in self._prefilling if job.job_id != job_id]

    def leave_sequence(self, job_id: str) -> None:
        """Free the cache of one of a job's sequences."""
        job = self._admitted[job_id]
        job.num_sequences -= 1
        if job.num_sequences == 0:
            self.leave(job_id)

    def _admit_next(self) -> bool:
        """Admit the next job in the queue if it fits; later jobs cannot overtake it."""
        if not self._waiting:
            return False
        job = self._waiting.get_next()
        if self.num_sequences + job.num_sequences > self._max_batch_size:
            return False
        if self._count_cache_tokens(job, *self._admitted.values()) > self._max_cache_tokens:
            return False
        self._waiting.pop_next()
        self._admitted[job.job_id] = job
        self._prefilling.append(job)
        return True

    @staticmethod
    def _count_cache_tokens(*jobs: _Job) -> int:
        longest = max((job.num_cached_tokens for job in jobs), default=0)
        return longest * sum(job.num_sequences for job in jobs)
