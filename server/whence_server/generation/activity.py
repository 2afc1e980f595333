"""How busy the engine is, over all its processes."""

from whence_server.domain.engine import Turn, Utilisation


class EngineActivity:
    """What the engine's latest turn said of its load, and how much it has done in all.

    Attributes:
        batch_size: sequences that took a step in the latest turn; 0 when nothing runs.
        num_cache_tokens: positions of the key-value cache that are spoken for.
        num_restarts: how often the engine process was started again.
    """

    def __init__(self) -> None:
        self.batch_size = 0
        self.num_cache_tokens = 0
        self.num_restarts = 0
        self._num_chunks_before = 0
        self._utilisation = Utilisation()

    @property
    def num_prefill_chunks(self) -> int:
        """Forward passes over prompts since the server's start."""
        return self._num_chunks_before + self._utilisation.num_prefill_chunks

    def note_turn(self, turn: Turn) -> None:
        """Take note of a turn."""
        self._utilisation = turn.utilisation
        self.batch_size = turn.cost.batch_size
        self.num_cache_tokens = turn.utilisation.num_cache_tokens

    def note_idle(self) -> None:
        """Take note that nothing runs any more."""
        self.batch_size = 0
        self.num_cache_tokens = 0

    def note_restart(self) -> None:
        """Take note that another process has taken over."""
        self.num_restarts += 1
        self._num_chunks_before = self.num_prefill_chunks
        self._utilisation = Utilisation()
        self.note_idle()
