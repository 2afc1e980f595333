"""Limits of each caller: generations at one time, places in the queue, tokens per minute."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from whence_server.domain.errors import CallerLimitError
from whence_server.domain.limits import CallerLimits, Limits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.running import RunningGeneration

_RETRY_AFTER_S = 1.0
_MINUTE_S = 60.0
_BYTES_A_TOKEN = 4


class Quotas:
    """Accounts of the callers.

    Tokens are accounted as a bucket that holds a minute's tokens and fills evenly. A generation is
    admitted if anything is left, reserves its prompt and the most that it may generate (an estimate
    while it is being prepared), and gives back at its end what it did not generate. One of an
    upstream may have no known bound, or a prompt that only the upstream counts: what it used beyond
    its reservation is taken at its end.

    Args:
        limits: the limits of each caller.
        running: all running generations, by id.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        limits: CallerLimits,
        running: Mapping[str, RunningGeneration],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._running = running
        self._clock = clock
        self._starting: Counter[str] = Counter()
        self._starting_rows: Counter[str] = Counter()
        self._starting_tokens: Counter[str] = Counter()
        self._missing: dict[str, tuple[float, float]] = {}
        """Tokens that a caller's bucket lacks, and the time of that; absent for a full bucket."""
        self._reserved: dict[str, int] = {}
        """Tokens reserved by each running generation."""

    @contextmanager
    def start(
        self, caller: str, num_sequences: int, request: GenerationRequest | None = None
    ) -> Iterator[None]:
        """Count a generation that is being prepared, and reserve the tokens that it may need.

        Args:
            caller: id of the caller.
            num_sequences: sequences or beams of the generation.
            request: its request; without it no tokens are reserved.

        Raises:
            CallerLimitError: the caller is at a limit.
        """
        self._check(caller, num_sequences)
        self._starting[caller] += 1
        self._starting_rows[caller] += num_sequences
        num_tokens = _estimate_tokens(request, num_sequences)
        self._starting_tokens[caller] += num_tokens
        try:
            yield
        finally:
            self._starting[caller] -= 1
            self._starting_rows[caller] -= num_sequences
            self._starting_tokens[caller] -= num_tokens
            if not self._starting[caller]:
                # Callers come and go: nothing is kept of one that has nothing here.
                for counter in (self._starting, self._starting_rows, self._starting_tokens):
                    del counter[caller]

    def reserve(self, generation: RunningGeneration) -> None:
        """Take the most tokens that a generation may need from its caller's bucket."""
        if not self._limits.tokens_per_minute:
            return
        started = generation.started
        most = len(started.prompt_token_ids)
        most += (started.decoding.max_new_tokens or 0) * started.decoding.num_rows
        self._reserved[generation.id] = most
        self._take(started.owner, most)

    def settle(self, generation: RunningGeneration) -> None:
        """Account what an ended generation has used; a second call does nothing."""
        reserved = self._reserved.pop(generation.id, None)
        if reserved is None:
            return
        self._take(generation.started.owner, generation.num_used_tokens - reserved)

    def _check(self, caller: str, num_sequences: int) -> None:
        limits = self._limits
        if not (limits.max_generations or limits.max_queue or limits.tokens_per_minute):
            return
        own = [it for it in self._running.values() if it.started.owner == caller]
        num_generations = len(own) + self._starting[caller]
        if 0 < limits.max_generations <= num_generations:
            raise CallerLimitError(
                f"{num_generations} generations that run or wait",
                "--caller-max-generations",
                limits.max_generations,
                _RETRY_AFTER_S,
            )
        waiting = sum(it.started.decoding.num_rows for it in own if it.waiting)
        waiting += self._starting_rows[caller]
        # If nothing of the caller waits, any number of sequences is admitted, as by --max-queue.
        if waiting and 0 < limits.max_queue < waiting + num_sequences:
            raise CallerLimitError(
                f"{waiting} sequences that wait",
                "--caller-max-queue",
                limits.max_queue,
                _RETRY_AFTER_S,
            )
        self._check_tokens(caller)

    def _check_tokens(self, caller: str) -> None:
        most = self._limits.tokens_per_minute
        over = self._measure_missing(caller) + self._starting_tokens[caller] - most
        if most and over >= 0:
            raise CallerLimitError(
                "used its tokens of this minute",
                "--caller-tokens-per-minute",
                most,
                max((over + 1) * _MINUTE_S / most, 0.1),
            )

    def _take(self, caller: str, num_tokens: int) -> None:
        missing = self._measure_missing(caller) + num_tokens
        if missing <= 0:
            self._missing.pop(caller, None)
        else:
            self._missing[caller] = missing, self._clock()

    def _measure_missing(self, caller: str) -> float:
        """Return the number of tokens that the caller's bucket lacks now."""
        if caller not in self._missing:
            return 0.0
        missing, since_s = self._missing[caller]
        filled = (self._clock() - since_s) * self._limits.tokens_per_minute / _MINUTE_S
        if filled >= missing:
            del self._missing[caller]
        return max(missing - filled, 0.0)


def _estimate_tokens(request: GenerationRequest | None, num_sequences: int) -> int:
    """Return about the most tokens that a request needs, before its text is made into tokens."""
    if request is None:
        return 0
    most = request.decoding.max_new_tokens or Limits().default_max_new_tokens
    return request.size_bytes // _BYTES_A_TOKEN + most * num_sequences
