"""The proposed conventions' arrays with an element for each token, for a generation's span.

Source: open-telemetry/semantic-conventions-genai#75, whose arrays of arrays are JSON here, because
attributes of spans hold none. The elements are serialised one by one as the steps are read, because
messages of all of them would hold the event loop.
"""

import json
from collections.abc import Callable
from contextlib import aclosing
from typing import NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ahead import ReadStep, StepsAhead
from whence_server.telemetry.spans.candidates_first import rank_candidates
from whence_server.telemetry.spans.internals import (
    encode_array_head,
    encode_double,
    encode_integer,
)
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.pages import read_step_pieces
from whence_server.telemetry.spans.pieces import serialise_attributes
from whence_server.telemetry.spans.steps import compute_step_interval

MAX_ARRAY_BYTES = 500_000
"""Most bytes of the arrays: a backend takes a span of a megabyte, and the content is on it too."""

_NUMBERS = (
    names.PER_TOKEN_TIME_TO_SCHEDULE,
    names.PER_TOKEN_TIME_TO_GENERATE,
    names.PER_TOKEN_BATCH_SIZE,
    names.PER_TOKEN_CUMULATIVE_COUNT,
)
_TEXTS = (
    names.PER_POSITION_TOKEN_IDS,
    names.PER_POSITION_LOGPROBS,
    names.PER_POSITION_DECODED_TOKENS,
)


class TokenArrays(NamedTuple):
    """Arrays of a generation's span."""

    attributes: bytes = b""
    """Serialised fields of a Span message."""
    shortened: tuple[str, ...] = ()
    """Names of the arrays if they end early, because they would have too many bytes."""


NO_ARRAYS = TokenArrays()


class _Arrays:
    """Arrays with an element for each token; those in `_TEXTS` hold JSON arrays."""

    def __init__(self) -> None:
        self._numbers: tuple[list[bytes], ...] = tuple([] for _ in _NUMBERS)
        self._texts: tuple[list[str], ...] = tuple([] for _ in _TEXTS)
        self._num_bytes = 0

    def add(self, origin: Origin, read: ReadStep, *, candidates: bool) -> bool:
        """Add a step; return False, and leave it out, if the arrays would have too many bytes."""
        step = read[0]
        ranked = rank_candidates(read, others=candidates)
        start, end = compute_step_interval(origin.start_time_ns, step.index, step.timing)
        numbers = (
            encode_double((start - origin.start_time_ns) / 1e9),
            encode_double((end - origin.start_time_ns) / 1e9),
            encode_integer(step.timing.batch_size),
            encode_integer(step.index + 1),
        )
        texts = (
            _dump(ranked.token_ids),
            _dump(ranked.logprobs),
            _dump_texts(origin.get_text, ranked.token_ids),
        )
        # Each text is followed by a comma or a bracket.
        num_texts_bytes = sum(len(text.encode()) + 1 for text in texts)
        num_bytes = self._num_bytes + sum(map(len, numbers)) + num_texts_bytes
        if num_bytes > MAX_ARRAY_BYTES:
            return False
        self._num_bytes = num_bytes
        for elements, element in zip(self._numbers, numbers, strict=True):
            elements.append(element)
        for positions, text in zip(self._texts, texts, strict=True):
            positions.append(text)
        return True

    def finish(self, *, is_whole: bool) -> TokenArrays:
        """Return the arrays; none without a token."""
        if not self._numbers[0]:
            return NO_ARRAYS
        found = {key: _join(texts) for key, texts in zip(_TEXTS, self._texts, strict=True)}
        attributes = b"".join(
            _encode_array(key, elements)
            for key, elements in zip(_NUMBERS, self._numbers, strict=True)
        )
        names_there = (*_NUMBERS, *(key for key, text in found.items() if text))
        return TokenArrays(
            attributes + serialise_attributes(found), () if is_whole else names_there
        )


async def read_token_arrays(
    journal: GenerationReader,
    ahead: StepsAhead,
    origin: Origin,
    max_tokens: int,
    *,
    candidates: bool = True,
) -> TokenArrays:
    """Return the arrays of a generation's first tokens; none if it has several sequences.

    They end before a step that cannot be read.

    Args:
        journal: the journal to read.
        ahead: reader of steps.
        origin: the generation's place in its trace.
        max_tokens: most tokens in the arrays.
        candidates: include each step's candidates, beside its token.

    Raises:
        GenerationNotFoundError: the generation was deleted.
    """
    arrays = _Arrays()
    if origin.num_sequences > 1:
        return NO_ARRAYS
    async with aclosing(
        read_step_pieces(journal, origin.generation_id, limit=max_tokens)
    ) as pieces:
        async for piece in pieces:
            found = ahead.read_again(piece)
            for place, (entry, read) in enumerate(found):
                if entry is not piece[place]:
                    return arrays.finish(is_whole=True)
                if not arrays.add(origin, read, candidates=candidates):
                    return arrays.finish(is_whole=False)
            if len(found) < len(piece):
                break
    return arrays.finish(is_whole=True)


def _encode_array(key: str, elements: list[bytes]) -> bytes:
    array = b"".join(elements)
    return encode_array_head(key, len(array), Span.ATTRIBUTES_FIELD_NUMBER) + array


def _dump(values: list[int] | list[float] | list[str]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) if values else ""


def _dump_texts(get_text: Callable[[int], str] | None, token_ids: list[int]) -> str:
    return "" if get_text is None else _dump([get_text(token_id) for token_id in token_ids])


def _join(positions: list[str]) -> str | None:
    """Return a JSON array of JSON arrays; None if one is missing, so that none is out of line."""
    return f"[{','.join(positions)}]" if all(positions) else None
