"""Finds out whether one span is at fault, or the destination that does not take it."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from whence_server.telemetry.export.courier import Courier, Unwanted
from whence_server.telemetry.export.outcomes import Accepted, Failed, Refused, TooLarge

Others: TypeAlias = Callable[[], Awaitable[bytes | None]]
"""Gives a span that waits behind the batch under way, any of them; None where none waits."""

_NUM_PROOFS = 8
_MAX_WITNESSES = 4
# In a row, the destination takes one to four other spans, then fails over the suspect, then takes
# others again. A destination that fails by chance, or in turns as replicas behind a balancer do,
# takes the suspect too, or fails over the others: with the number of others drawn at random, each
# proof has a chance of a quarter at most.
_SHARE_SKIPPED = 0.5
# By chance, so that a destination that the suspect crashes can show that it is up again.
_MAX_KNOWN = 1 << 16
_NUM_TRIES = 4


class Sighting(NamedTuple):
    """The outcome of a look for a witness."""

    witness: bytes | None
    """A span that the destination took just now; None where none was found."""
    takes_others: bool
    """The destination took a span other than the suspect, be it one that it had before."""
    has_asked: bool
    """There was another span to send."""


class Witnesses:
    """Spans beside the suspect, by which a destination shows that it takes anything at all.

    A witness has to be new to the destination: one that takes again what it has, and refuses
    whatever is new (a tenant's limit on live traces), says nothing against the suspect.

    Args:
        courier: sends them. What a destination gets twice is the same to the byte.
        chance: where random numbers come from.
    """

    def __init__(self, courier: Courier, chance: random.Random) -> None:
        self._courier = courier
        self._chance = chance
        self._taken: bytes | None = None
        self._fresh: bytes | None = None
        self._known: set[int] = set()
        self._batch: list[bytes] = []
        self._others: Others | None = None
        self._turn = 0

    def begin(self, batch: list[bytes], others: Others | None) -> None:
        """Start over with a batch: what was taken before it proves nothing about it."""
        self._batch, self._others, self._fresh = batch, others, None

    def note_taken(self, part: list[bytes]) -> None:
        """Remember what was taken: part of a batch is a witness, as the whole was not taken."""
        self._taken = part[-1]
        if len(part) < len(self._batch):
            self._fresh = part[-1]
            self._remember(part)

    def note_set_aside(self, span: bytes) -> None:
        """Remember a span that can be no witness."""
        self._remember([span])

    async def find(self, suspect: bytes, *, patient: bool) -> Sighting:
        """Look for a witness by sending it.

        Args:
            suspect: can be none itself.
            patient: where nothing new waits, let a span that was taken before do.
        """
        if self._fresh is not None and await self._courier.takes(self._fresh):
            return Sighting(self._fresh, takes_others=True, has_asked=True)
        candidate = await self._candidate(suspect)
        if candidate is not None:
            if not await self._courier.takes(candidate):
                return Sighting(None, takes_others=False, has_asked=True)
            self._fresh = candidate
            self._remember([candidate])
            return Sighting(candidate, takes_others=True, has_asked=True)
        if self._taken is None:
            return Sighting(None, takes_others=False, has_asked=self._fresh is not None)
        takes = await self._courier.takes(self._taken)
        return Sighting(self._taken if patient and takes else None, takes, has_asked=True)

    async def _candidate(self, suspect: bytes) -> bytes | None:
        """Return a span that the destination has not taken yet; None where none is to be found."""
        self._turn += 1
        pool = [span for span in self._batch if span is not suspect and self._is_new(span)]
        if pool and self._turn % 2:
            return self._chance.choice(pool)
        for _ in range(_NUM_TRIES if self._others is not None else 0):
            other = await self._others() if self._others is not None else None
            if other is not None and other != suspect and self._is_new(other):
                return other
        return self._chance.choice(pool) if pool else None

    def _is_new(self, span: bytes) -> bool:
        return hash(span) not in self._known

    def _remember(self, spans: list[bytes]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        self._known.update(map(hash, spans))


@dataclass(slots=True)
class _Hearing:
    """Evidence against one suspect so far."""

    suspect: bytes
    unwanted: Unwanted
    """The newest answer to it."""
    num_proofs: int = 0
    """Times in a row that others were taken, and it was not."""
    num_held: int = 0


class Trial:
    """Sends a suspect again and again, between other spans, until it is taken or proven bad.

    Args:
        courier: makes the requests.
        witnesses: gives the other spans.
        patience: rounds to wait for a new span, where nothing but the suspect waits.
        chance: where random numbers come from.
    """

    def __init__(
        self, courier: Courier, witnesses: Witnesses, patience: int, chance: random.Random
    ) -> None:
        self._courier = courier
        self._witnesses = witnesses
        self._patience = patience
        self._chance = chance

    async def judge(self, suspect: bytes, unwanted: Unwanted) -> Unwanted | None:
        """Return None once the suspect was taken; the last answer once it is proven bad.

        Args:
            suspect: the span.
            unwanted: the answer to the newest attempt at it.
        """
        hearing = _Hearing(suspect, unwanted)
        while True:
            found = await self._witnesses.find(suspect, patient=hearing.num_held >= self._patience)
            if found.witness is None:
                taken = await self._hold(hearing, found)
            elif hearing.num_proofs >= _NUM_PROOFS:
                return hearing.unwanted
            else:
                taken = await self._interleave(hearing, found.witness)
            if taken:
                return None

    async def _hold(self, hearing: _Hearing, found: Sighting) -> bool:
        """Wait, and says whether the suspect is taken afterwards."""
        await self._courier.hold(hearing.unwanted, takes_others=found.takes_others)
        hearing.num_held += 1
        if found.has_asked and self._chance.random() < _SHARE_SKIPPED:
            return False
        return await self._takes(hearing)

    async def _interleave(self, hearing: _Hearing, witness: bytes) -> bool:
        """Send witness and suspect in turns; says whether the suspect was taken."""
        if not hearing.num_proofs:
            self._courier.takes_others()
        is_well = True
        while is_well and hearing.num_proofs < _NUM_PROOFS:
            is_well = await self._takes_all(witness)
            if await self._takes(hearing):
                return True
            hearing.num_proofs = hearing.num_proofs + 1 if is_well else 0
            if _is_to_be_left_alone(hearing.unwanted):
                await self._courier.hold(hearing.unwanted, takes_others=True)
                break
        return False

    async def _takes(self, hearing: _Hearing) -> bool:
        outcome = await self._courier.attempt([hearing.suspect])
        if isinstance(outcome, Accepted):
            return True
        hearing.unwanted = outcome
        return False

    async def _takes_all(self, witness: bytes) -> bool:
        num_sent = self._chance.randint(1, _MAX_WITNESSES)
        return all([await self._courier.takes(witness) for _ in range(num_sent)])


def _is_to_be_left_alone(unwanted: Unwanted) -> bool:
    """Return whether the answer may be of the moment, so that time has to pass before the next."""
    match unwanted:
        case Refused():
            return False
        case TooLarge(certain=certain):
            return not certain
        case Failed(delay_s=delay_s):
            return delay_s is not None
    return True
