"""Test whether a refused span is at fault, or the destination, which accepts nothing."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from whence_server.telemetry.export.courier import Courier, Unwanted
from whence_server.telemetry.export.outcomes import Accepted, Failed, Refused, TooLarge

Others: TypeAlias = Callable[[], Awaitable[bytes | None]]
"""Function that returns some span after the batch under way; None if there is none."""

_NUM_PROOFS = 8
_MAX_WITNESSES = 4
# In each proof the destination accepts one to four other spans, then refuses the suspect. A
# destination that fails at random, or in turns like replicas behind a load balancer, would accept
# the suspect too or refuse the others: as the number of others is drawn at random, it passes each
# proof with a probability of at most a quarter.
_SHARE_SKIPPED = 0.5
# The suspect is not always sent, so that a destination that it crashes can recover.
_MAX_KNOWN = 1 << 16
_NUM_TRIES = 4


class Sighting(NamedTuple):
    """Outcome of a search for a witness."""

    witness: bytes | None
    """Span that the destination accepted just now; None if none was found."""
    takes_others: bool
    """True if the destination accepted a span other than the suspect, new or sent before."""
    has_asked: bool
    """True if there was another span to send."""


class Witnesses:
    """Spans other than the suspect, with which it is tested whether a destination accepts any.

    A witness has to be new to the destination. A destination may accept spans again that it has,
    and refuse every new one (e.g. a tenant's limit on live traces): the suspect is not at fault.

    Args:
        courier: sends the spans; a span that is sent twice is byte-identical.
        chance: source of random numbers.
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
        """Start over with a batch; spans that were accepted before are no witnesses."""
        self._batch, self._others, self._fresh = batch, others, None

    def note_taken(self, part: list[bytes]) -> None:
        """Note accepted spans; those of a part of a refused batch are witnesses."""
        self._taken = part[-1]
        if len(part) < len(self._batch):
            self._fresh = part[-1]
            self._remember(part)

    def note_set_aside(self, span: bytes) -> None:
        """Note a span that was set aside, and is no witness."""
        self._remember([span])

    async def find(self, suspect: bytes, *, patient: bool) -> Sighting:
        """Search for a witness by sending spans.

        Args:
            suspect: the span under test, which is no witness.
            patient: accept a span that was sent before if there is no new one.
        """
        if self._fresh is not None and await self._courier.is_taken(self._fresh):
            return Sighting(self._fresh, takes_others=True, has_asked=True)
        candidate = await self._pick_candidate(suspect)
        if candidate is not None:
            if not await self._courier.is_taken(candidate):
                return Sighting(None, takes_others=False, has_asked=True)
            self._fresh = candidate
            self._remember([candidate])
            return Sighting(candidate, takes_others=True, has_asked=True)
        if self._taken is None:
            return Sighting(None, takes_others=False, has_asked=self._fresh is not None)
        takes = await self._courier.is_taken(self._taken)
        return Sighting(self._taken if patient and takes else None, takes, has_asked=True)

    async def _pick_candidate(self, suspect: bytes) -> bytes | None:
        """Return a span that the destination has not accepted yet; None if none was found."""
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
    """Newest answer to the suspect."""
    num_proofs: int = 0
    """Consecutive times that others were accepted and the suspect was not."""
    num_held: int = 0


class Trial:
    """Test of a suspect, which is sent between other spans until it is accepted or proven bad.

    Args:
        courier: makes the requests.
        witnesses: finds other spans.
        patience: rounds to wait for a new span if there is none but the suspect.
        chance: source of random numbers.
    """

    def __init__(
        self, courier: Courier, witnesses: Witnesses, patience: int, chance: random.Random
    ) -> None:
        self._courier = courier
        self._witnesses = witnesses
        self._patience = patience
        self._chance = chance

    async def judge(self, suspect: bytes, unwanted: Unwanted) -> Unwanted | None:
        """Test a suspect; return None if it is accepted, the last answer if it is proven bad.

        Args:
            suspect: the span under test.
            unwanted: the answer to the newest attempt to send it.
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
        """Wait, and return whether the suspect is accepted afterwards."""
        await self._courier.hold(hearing.unwanted, takes_others=found.takes_others)
        hearing.num_held += 1
        if found.has_asked and self._chance.random() < _SHARE_SKIPPED:
            return False
        return await self._try_suspect(hearing)

    async def _interleave(self, hearing: _Hearing, witness: bytes) -> bool:
        """Send witness and suspect in turns; return whether the suspect was accepted."""
        if not hearing.num_proofs:
            self._courier.note_takes_others()
        is_well = True
        while is_well and hearing.num_proofs < _NUM_PROOFS:
            is_well = await self._try_witness(witness)
            if await self._try_suspect(hearing):
                return True
            hearing.num_proofs = hearing.num_proofs + 1 if is_well else 0
            if _needs_pause(hearing.unwanted):
                await self._courier.hold(hearing.unwanted, takes_others=True)
                break
        return False

    async def _try_suspect(self, hearing: _Hearing) -> bool:
        outcome = await self._courier.attempt([hearing.suspect])
        if isinstance(outcome, Accepted):
            return True
        hearing.unwanted = outcome
        return False

    async def _try_witness(self, witness: bytes) -> bool:
        num_sent = self._chance.randint(1, _MAX_WITNESSES)
        return all([await self._courier.is_taken(witness) for _ in range(num_sent)])


def _needs_pause(unwanted: Unwanted) -> bool:
    """Return whether the answer may be temporary, so that the next attempt has to wait."""
    match unwanted:
        case Refused():
            return False
        case TooLarge(certain=certain):
            return not certain
        case Failed(delay_s=delay_s):
            return delay_s is not None
    return True
