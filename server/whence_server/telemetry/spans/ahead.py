"""Steps read ahead of their encoding, because some work is cheaper for several at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from google.protobuf.message import DecodeError

from whence.v1.step_pb2 import Draw, Step, StepTiming
from whence_server.domain.entries import Entry, EntryKind
from whence_server.telemetry.spans.origin import Origin

_STEP = EntryKind.STEP  # a member takes longer to look up than to compare

_CHUNK = 16
"""Steps that are read at once, in less than a tenth of a millisecond."""

_SUMMARISED = 4
"""Candidates that a summary needs: three runners-up, and the token itself."""

NUM_SCALARS = 6
"""logprob, sampling_logprob, entropy, sampling_entropy, draw.noise and draw.margin; 0 if absent."""

Arrays: TypeAlias = tuple[
    list[int], list[float], list[float], list[int], Sequence[float], Sequence[float]
]
"""A step's candidates (token_ids, logprobs, sampling_logprobs) and its processors' effects
(num_kept, removed_mass, token_logprobs); empty lists are absent."""

Scalars: TypeAlias = tuple[float, float, float, float, float, float]

ReadStep: TypeAlias = tuple[Step, Arrays, list[float], Draw, Scalars, StepTiming, int, int]
"""A step, its arrays, and its float32 values in the fewest digits: the scalars, then the arrays of
floats in their order. Then its draw, the scalars as they are recorded, its timing, sequence_index
and index, because it takes longer to read them from the message again. A plain tuple, because one
is made for every step."""

AT_SEQUENCE_INDEX: Final = 6
"""Place of a step's sequence_index in a `ReadStep`."""
AT_INDEX: Final = 7
"""Place of a step's index in a `ReadStep`."""

_NOTHING: Arrays = ([], [], [], [], (), ())


class StepsAhead:
    """Reader of steps that reads the next ones as well.

    Args:
        shorten_all: returns float32 values with the fewest digits.
        origins: origins of generations; steps of others, and of unsampled ones, are not read ahead.
        candidates: read all candidates; otherwise only those of a summary, and not among the
            float32 values.
    """

    def __init__(
        self,
        shorten_all: Callable[[Sequence[float]], list[float]],
        origins: Mapping[str, Origin | None],
        *,
        candidates: bool = True,
    ) -> None:
        self._shorten_all = shorten_all
        self._origins = origins
        self._candidates = candidates
        self._entries: Sequence[Entry] = ()
        self._ready: dict[int, ReadStep] = {}

    def expect(self, entries: Sequence[Entry]) -> None:
        """Note the entries that will be encoded next, in order and without gaps."""
        self._entries = entries
        self._ready.clear()

    def read(self, entry: Entry) -> ReadStep:
        """Return an entry's step.

        Raises:
            DecodeError: the payload is no Step.
        """
        found = self._ready.pop(entry.position, None)
        if found is not None:
            return found
        steps = [(entry.position, Step.FromString(entry.payload))]
        for other in self._list_next(entry):
            try:
                steps.append((other.position, Step.FromString(other.payload)))
            except DecodeError:
                continue
        self._add(steps, self._ready)
        return self._ready.pop(entry.position)

    def read_again(self, entries: Sequence[Entry]) -> list[tuple[Entry, ReadStep]]:
        """Return the steps of entries that are not the expected ones, each after its entry.

        Deleted and unreadable steps are left out.
        """
        steps = []
        for entry in entries:
            try:
                if entry.payload:
                    steps.append((entry.position, Step.FromString(entry.payload)))
            except DecodeError:
                continue
        read: dict[int, ReadStep] = {}
        self._add(steps, read)
        return [(entry, read[entry.position]) for entry in entries if entry.position in read]

    def _list_next(self, entry: Entry) -> list[Entry]:
        """Return the entries after an expected one whose steps get spans."""
        entries, origins = self._entries, self._origins
        place = entry.position - entries[0].position if entries else -1
        if not 0 <= place < len(entries) or entries[place] is not entry:
            return []
        return [
            other
            for other in entries[place + 1 : place + _CHUNK]
            if other.kind is _STEP
            and other.payload
            and (origin := origins.get(other.generation_id)) is not None
            and origin.sampled
        ]

    def _add(self, steps: list[tuple[int, Step]], ready: dict[int, ReadStep]) -> None:
        values: list[float] = []
        read = []
        all_candidates = self._candidates
        for position, step in steps:
            begin = len(values)
            draw = step.draw
            scalars = (
                step.logprob,
                step.sampling_logprob,
                step.entropy,
                step.sampling_entropy,
                draw.noise,
                draw.margin,
            )
            values += scalars
            arrays = _append_arrays(step, values, all_candidates)
            read.append((position, step, arrays, begin, len(values), draw, scalars))
        shortened = self._shorten_all(values)
        for position, step, arrays, begin, end, draw, scalars in read:
            ready[position] = (
                step,
                arrays,
                shortened[begin:end],
                draw,
                scalars,
                step.timing,
                step.sequence_index,
                step.index,
            )


def _append_arrays(step: Step, values: list[float], all_candidates: bool) -> Arrays:
    """Append the float32 values of a step's arrays to a list; return its arrays."""
    token_ids, logprobs, sampling_logprobs, num_kept, removed_mass, token_logprobs = _NOTHING
    if step.HasField("candidates"):
        candidates = step.candidates
        if all_candidates:
            token_ids, logprobs = candidates.token_ids[:], candidates.logprobs[:]
            sampling_logprobs = candidates.sampling_logprobs[:]
            values += logprobs
            values += sampling_logprobs
        else:
            token_ids, logprobs = (
                candidates.token_ids[:_SUMMARISED],
                candidates.logprobs[:_SUMMARISED],
            )
    if step.HasField("processors"):
        effects = step.processors
        num_kept, removed_mass = effects.num_kept[:], effects.removed_mass[:]
        token_logprobs = effects.token_logprobs[:]
        values += removed_mass
        values += token_logprobs
    return token_ids, logprobs, sampling_logprobs, num_kept, removed_mass, token_logprobs
