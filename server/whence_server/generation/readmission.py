"""Who is sent to the engine, and when: after a death the suspects go back one at a time.

Any of the generations that were running may have killed the engine. They are admitted again
one after the other, each once the one before it has got further than it was. If the engine dies
in a trial, that one is tried again, first of all and so alone; if it dies then too, it is to
blame beyond doubt, and fails.
"""

from collections import deque
from collections.abc import Callable, Iterable

from whence_server.domain.engine import Admit
from whence_server.generation.running import RunningGeneration

STEPS_TO_CLEAR = 2
"""New steps after which a generation on trial has passed what it died at."""
MAX_DEATHS = 5
"""However innocent each time: nothing is tried for ever."""


class Readmission:
    """Sends admissions at once, or holds them back while the engine is down or a trial runs."""

    def __init__(self, send: Callable[[Admit], None]) -> None:
        self._send = send
        self._down = False
        self._sent: set[str] = set()
        self._trials: deque[RunningGeneration] = deque()
        self._held: deque[RunningGeneration] = deque()
        self._on_trial: RunningGeneration | None = None
        self._steps_on_trial = 0

    def admit(self, running: RunningGeneration) -> None:
        """Send a new generation, or keeps it until no trial is on any more."""
        if self._down or self._on_trial is not None:
            self._held.append(running)
        else:
            self._dispatch(running)

    def has_sent(self, running: RunningGeneration) -> bool:
        """Whether the engine knows of it."""
        return running.id in self._sent

    def note_step(self, running: RunningGeneration) -> None:
        """Take note of a step that was made; the trial of its generation may end with it."""
        if running is self._on_trial:
            self._steps_on_trial += 1
            if self._steps_on_trial >= STEPS_TO_CLEAR:
                self._begin_next_trial()

    def forget(self, running: RunningGeneration) -> None:
        """Take note that a generation has ended, whichever way."""
        self._sent.discard(running.id)
        if running is self._on_trial:
            self._begin_next_trial()

    def note_death(self, running: Iterable[RunningGeneration]) -> list[RunningGeneration]:
        """Take note of a death; returns those that are to blame for it, to be failed."""
        self._down = True
        blamed = []
        suspects = [g for g in running if g.id in self._sent]
        if self._on_trial is not None and self._sent == {self._on_trial.id}:
            blamed = [self._on_trial]
        for generation in suspects:
            generation.num_deaths += 1
            if generation.num_deaths >= MAX_DEATHS and generation not in blamed:
                blamed.append(generation)
        again = [g for g in suspects if g not in blamed]
        # First among them, and so alone, the one that was on trial beside others.
        again.sort(key=lambda g: g is not self._on_trial)
        self._trials.extendleft(reversed(again))
        self._on_trial = None
        self._sent.clear()
        return blamed

    def note_restart(self) -> None:
        """Begin to send again."""
        self._down = False
        self._begin_next_trial()

    def _begin_next_trial(self) -> None:
        self._on_trial = None
        if self._down:
            return
        while self._trials and self._on_trial is None:
            candidate = self._trials.popleft()
            if not candidate.done.is_set():
                self._on_trial = candidate
                self._steps_on_trial = 0
                self._dispatch(candidate)
        while self._held and self._on_trial is None:
            waiting = self._held.popleft()
            if not waiting.done.is_set():
                self._dispatch(waiting)

    def _dispatch(self, running: RunningGeneration) -> None:
        self._sent.add(running.id)
        self._send(running.make_admission())
