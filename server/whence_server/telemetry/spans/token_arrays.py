"""The proposed conventions' arrays with an element for each token, for a generation's span.

Source: open-telemetry/semantic-conventions-genai#75, whose arrays of arrays are JSON here, because
attributes of spans hold none.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from whence_server.domain.entries import EntryKind
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ahead import ReadStep, StepsAhead
from whence_server.telemetry.spans.candidates_first import rank_candidates
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import compute_step_interval

MAX_JSON_BYTES = 500_000
"""Most bytes of the JSON: a backend takes a span of a megabyte, and the output is on it too."""

_PAGE = 512
_STEPS = frozenset({EntryKind.STEP})


@dataclass(slots=True)
class _Arrays:
    """Arrays with an element for each token."""

    scheduled_s: list[float] = field(default_factory=list)
    generated_s: list[float] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[str] = field(default_factory=list)
    logprobs: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    num_bytes: int = 0

    def add(self, origin: Origin, read: ReadStep, *, candidates: bool) -> bool:
        """Add a step; return False, and leave it out, if the JSON would be too long."""
        step = read[0]
        ranked = rank_candidates(read, others=candidates)
        token_ids, logprobs = _dump(ranked.token_ids), _dump(ranked.logprobs)
        texts = _dump_texts(origin.get_text, ranked.token_ids)
        num_bytes = self.num_bytes + len(token_ids) + len(logprobs) + len(texts.encode())
        if num_bytes > MAX_JSON_BYTES:
            return False
        self.num_bytes = num_bytes
        start, end = compute_step_interval(origin.start_time_ns, step.index, step.timing)
        self.scheduled_s.append((start - origin.start_time_ns) / 1e9)
        self.generated_s.append((end - origin.start_time_ns) / 1e9)
        self.batch_sizes.append(step.timing.batch_size)
        self.counts.append(step.index + 1)
        self.token_ids.append(token_ids)
        self.logprobs.append(logprobs)
        self.texts.append(texts)
        return True

    def make_attributes(self) -> dict[str, AttributeValue | None]:
        if not self.counts:
            return {}
        return {
            names.PER_TOKEN_TIME_TO_SCHEDULE: self.scheduled_s,
            names.PER_TOKEN_TIME_TO_GENERATE: self.generated_s,
            names.PER_TOKEN_BATCH_SIZE: self.batch_sizes,
            names.PER_TOKEN_CUMULATIVE_COUNT: self.counts,
            names.PER_POSITION_TOKEN_IDS: _join(self.token_ids),
            names.PER_POSITION_LOGPROBS: _join(self.logprobs),
            names.PER_POSITION_DECODED_TOKENS: _join(self.texts),
        }


async def read_token_arrays(
    journal: GenerationReader,
    ahead: StepsAhead,
    origin: Origin,
    max_tokens: int,
    *,
    candidates: bool = True,
) -> dict[str, AttributeValue | None]:
    """Return the arrays of a generation's first tokens; none if it has several sequences.

    Args:
        journal: the journal to read.
        ahead: reader of steps.
        origin: the generation's place in its trace.
        max_tokens: most tokens in the arrays.
        candidates: include each step's candidates, beside its token.

    Raises:
        GenerationNotFoundError: the generation was deleted.
    """
    arrays, after, num_tokens = _Arrays(), 0, 0
    if origin.num_sequences > 1:
        return {}
    while num_tokens < max_tokens:
        limit = min(_PAGE, max_tokens - num_tokens)
        entries = await journal.read(origin.generation_id, after, limit, _STEPS)
        for entry in entries:
            try:
                read = ahead.read(entry)
            except DecodeError:  # the arrays end before a token that cannot be read
                return arrays.make_attributes()
            if not arrays.add(origin, read, candidates=candidates):
                return arrays.make_attributes()
            num_tokens += 1
        if not entries:
            break
        after = entries[-1].offset
    return arrays.make_attributes()


def _dump(values: list[int] | list[float] | list[str]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) if values else ""


def _dump_texts(get_text: Callable[[int], str] | None, token_ids: list[int]) -> str:
    return "" if get_text is None else _dump([get_text(token_id) for token_id in token_ids])


def _join(positions: list[str]) -> str | None:
    """Return a JSON array of JSON arrays; None if one is missing, so that none is out of line."""
    return f"[{','.join(positions)}]" if all(positions) else None
