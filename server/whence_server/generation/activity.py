"""Load of the engine, over all its processes since the server's start."""

from whence_server.domain.engine import Turn, Utilisation
from whence_server.generation.token_rate import TokenRate


class EngineActivity:
    """The engine's load in its latest turn, and totals over its processes.

    Attributes:
        batch_size: sequences that took a step in the latest turn; 0 when nothing runs.
        num_cache_tokens: reserved positions of the key-value cache.
        num_restarts: number of restarts of the engine process.
        rate: tokens a second.
    """

    def __init__(self) -> None:
        self.batch_size = 0
        self.num_cache_tokens = 0
        self.num_restarts = 0
        self.rate = TokenRate()
        self._num_chunks_before = 0
        self._utilisation = Utilisation()

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second over the last seconds."""
        return self.rate.per_second

    @property
    def num_prefill_chunks(self) -> int:
        """Forward passes over prompts since the server's start."""
        return self._num_chunks_before + self._utilisation.num_prefill_chunks

    @property
    def num_prefix_tokens(self) -> int:
        """Positions in the prefix cache, which keeps them when nothing runs."""
        return self._utilisation.num_prefix_tokens

    def note_turn(self, turn: Turn) -> None:
        """Update the load from a turn."""
        self._utilisation = turn.utilisation
        self.batch_size = turn.cost.batch_size
        self.rate.add(turn.cost.batch_size)
        self.num_cache_tokens = turn.utilisation.num_cache_tokens

    def note_idle(self) -> None:
        """Set the load to 0, as nothing runs."""
        self.batch_size = 0
        self.num_cache_tokens = 0

    def note_restart(self) -> None:
        """Count a restart of the engine process."""
        self.num_restarts += 1
        self._num_chunks_before = self.num_prefill_chunks
        self._utilisation = Utilisation()
        self.note_idle()
