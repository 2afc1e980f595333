"""Span ids that are functions of the journal, so that spans sent twice are identical."""

import hashlib
import struct
from enum import IntEnum

_DOMAIN = b"whence.v1.span\0"
_SUFFIX = struct.Struct(">BII")
_ZERO = bytes(8)
_NEVER_ZERO = bytes(7) + b"\1"


class SpanKind(IntEnum):
    """Kind of a generation's span. The numbers are hashed into ids: never reuse one."""

    GENERATION = 1
    DECODE = 2
    DECODE_STEP = 3
    QUEUE = 4
    PREFILL = 5
    DECODE_BLOCK = 6
    BEAM_ROUND = 7
    DECODE_PART = 8


_DECODE_STEP = int(SpanKind.DECODE_STEP)


class SpanIds:
    """Ids of one generation's spans.

    Each id is the first 8 bytes of SHA-256 over a domain, the trace id, the generation id with
    its length, the kind, the sequence index, and the index of the step, the block's first step,
    the round or the part. No id is zero, which W3C Trace Context reserves for "invalid".
    """

    __slots__ = ("_begun", "_decode_ids")

    def __init__(self, trace_id: bytes, generation_id: str) -> None:
        name = generation_id.encode()
        self._decode_ids: dict[int, bytes] = {}
        # The hash of the common prefix: each id then hashes one block instead of two.
        self._begun = hashlib.sha256(_DOMAIN + trace_id + struct.pack(">I", len(name)) + name)

    def get_generation_id(self) -> bytes:
        """Return the GenAI span's id."""
        return self._digest(SpanKind.GENERATION, 0, 0)

    def get_decode_id(self, sequence_index: int) -> bytes:
        """Return the id of a sequence's `decode` span."""
        span_id = self._decode_ids.get(sequence_index)  # needed for every step
        if span_id is None:
            span_id = self._digest(SpanKind.DECODE, sequence_index, 0)
            self._decode_ids[sequence_index] = span_id
        return span_id

    def get_decode_part_id(self, sequence_index: int, part: int) -> bytes:
        """Return the id of a further `decode` span, for the events that the first does not hold."""
        return self._digest(SpanKind.DECODE_PART, sequence_index, part)

    def get_decode_step_id(self, sequence_index: int, index: int) -> bytes:
        """Return the id of a `decode_step` span."""
        # As `_digest` does, with the kind as a plain integer: this is computed for every step.
        digest = self._begun.copy()
        digest.update(_SUFFIX.pack(_DECODE_STEP, sequence_index, index))
        span_id = digest.digest()[:8]
        return _NEVER_ZERO if span_id == _ZERO else span_id

    def get_queue_id(self) -> bytes:
        """Return the `queue` span's id."""
        return self._digest(SpanKind.QUEUE, 0, 0)

    def get_prefill_id(self) -> bytes:
        """Return the `prefill` span's id."""
        return self._digest(SpanKind.PREFILL, 0, 0)

    def get_decode_block_id(self, sequence_index: int, first_index: int) -> bytes:
        """Return the id of the `decode_block` span that begins with a step."""
        return self._digest(SpanKind.DECODE_BLOCK, sequence_index, first_index)

    def get_beam_round_id(self, index: int) -> bytes:
        """Return the id of a `beam_round` span."""
        return self._digest(SpanKind.BEAM_ROUND, 0, index)

    def _digest(self, kind: int, sequence_index: int, index: int) -> bytes:
        digest = self._begun.copy()
        digest.update(_SUFFIX.pack(kind, sequence_index, index))
        span_id = digest.digest()[:8]
        return _NEVER_ZERO if span_id == _ZERO else span_id


def parse_hex_id(text: str, num_bytes: int) -> bytes:
    """Parse a W3C trace or span id.

    Raises:
        ValueError: the text has another length, is not hex, or is all zero.
    """
    raw = bytes.fromhex(text)
    if len(raw) != num_bytes or not any(raw):
        raise ValueError(f"{text!r} is not a W3C id of {2 * num_bytes} hex digits, not all zero")
    return raw
