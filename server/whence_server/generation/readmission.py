"""Readmission of generations to the engine after its death, one at a time.

Any generation that was running may have killed the engine. They are admitted again one after the
other: each is on trial until it has made new steps, and only then the next one is admitted. If
the engine dies during a trial, the generation on trial is tried first, and alone. If the engine
dies again, that generation is the cause, and fails.
"""

from collections import deque
from collections.abc import Callable, Iterable

from whence_server.domain.engine import Admit
from whence_server.generation.running import RunningGeneration

STEPS_TO_CLEAR = 2
"""New steps after which a generation's trial ends."""
MAX_DEATHS = 5
"""Deaths of the engine during a generation after which it fails, on trial or not."""


class Readmission:
    """Sender of admissions, which holds them back while the engine is down or a trial runs."""

    def __init__(self, send: Callable[[Admit], None]) -> None:
        self._send = send
        self._down = False
        self._sent: set[str] = set()
        self._trials: deque[RunningGeneration] = deque()
        self._held: deque[RunningGeneration] = deque()
        self._on_trial: RunningGeneration | None = None
        self._steps_on_trial = 0

    @property
    def is_down(self) -> bool:
        """True from the engine's death to its restart."""
        return self._down

    def admit(self, running: RunningGeneration) -> None:
        """Send a new generation to the engine, or hold it until the trials have ended."""
        if self._down or self._on_trial is not None:
            self._held.append(running)
        else:
            self._dispatch(running)

    def has_sent(self, running: RunningGeneration) -> bool:
        """Return whether the generation was sent to the engine that runs now."""
        return running.id in self._sent

    def note_step(self, running: RunningGeneration) -> None:
        """Count a step of a generation, which may end its trial."""
        if running is self._on_trial:
            self._steps_on_trial += 1
            if self._steps_on_trial >= STEPS_TO_CLEAR:
                self._begin_next_trial()

    def forget(self, running: RunningGeneration) -> None:
        """Remove a generation that has ended."""
        self._sent.discard(running.id)
        if running is self._on_trial:
            self._begin_next_trial()

    def note_death(self, running: Iterable[RunningGeneration]) -> list[RunningGeneration]:
        """Prepare trials after the engine's death; return the generations to fail for it."""
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
        # The one that was on trial beside others is tried first, and so alone.
        again.sort(key=lambda g: g is not self._on_trial)
        self._trials.extendleft(reversed(again))
        self._on_trial = None
        self._sent.clear()
        return blamed

    def note_restart(self) -> None:
        """Resume sending after the engine's restart."""
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
