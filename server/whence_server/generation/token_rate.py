"""Rate of generated tokens over the last seconds."""

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 5


class TokenRate:
    """Numbers of tokens of the last whole seconds.

    Args:
        clock: seconds of a clock that is never set back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # One pair of a second and its number; the newest second is not over yet.
        self._seconds: deque[tuple[int, int]] = deque(maxlen=WINDOW_S + 1)

    def add(self, num_tokens: int) -> None:
        """Count tokens that were generated just now."""
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            num_tokens += self._seconds.pop()[1]
        self._seconds.append((second, num_tokens))

    @property
    def per_second(self) -> float:
        """Tokens a second over the last `WINDOW_S` whole seconds."""
        now = int(self._clock())
        recent = [num for second, num in self._seconds if now - WINDOW_S <= second < now]
        return sum(recent) / WINDOW_S
