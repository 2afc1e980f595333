"""Journal entries as the server writes them, and a journal in memory."""

import asyncio
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from whence.v1 import call_pb2, generation_pb2, occurrence_pb2, step_pb2
from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError

START_NS = 1_800_000_000_000_000_000
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN_ID = "00f067aa0ba902b7"


def server_span_id(generation_id: str) -> str:
    return hashlib.sha256(generation_id.encode()).hexdigest()[:16]


def timestamp(unix_ns: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(unix_ns)
    return stamp


def started(generation_id: str, *, flags: int = 1, num_sequences: int = 1, **fields: object):
    decoding = generation_pb2.Decoding(
        sample=generation_pb2.Sample(temperature=0.8, top_k=40, top_p=0.95, seed=2**64 - 1),
        max_new_tokens=64,
        num_return_sequences=num_sequences,
        stop=["\n\n"],
    )
    return generation_pb2.GenerationStarted(
        **{
            "generation_id": generation_id,
            "trace_id": TRACE_ID,
            "span_id": server_span_id(generation_id),
            "parent_span_id": CALLER_SPAN_ID,
            "trace_flags": flags,
            "trace_state": "vendor=x",
            "start_time": timestamp(START_NS),
            "model": "demo",
            "model_digest": "aa",
            "effective_decoding": decoding,
            "labels": {"team": "search", "a": "1", "zone": "b"},
            **fields,
        }
    )


def step(index: int, sequence_index: int = 0, **fields: object):
    """Return a step of 4 ms; steps follow one another without gaps from 10 ms on."""
    timing = step_pb2.StepTiming(
        elapsed_ns=10_000_000 + 4_000_000 * (index + 1),
        forward_ns=3_000_000,
        select_ns=1_000_000,
        batch_size=3,
        context_length=20 + index,
    )
    draw = step_pb2.Draw(noise=0.5, runner_up_token_id=7, margin=0.25)
    return step_pb2.Step(
        **{
            "sequence_index": sequence_index,
            "index": index,
            "token_id": 1000 + index,
            "text": "secret",
            "logprob": -1.5,
            "sampling_logprob": -1.25,
            "rank": 2,
            "entropy": 3.5,
            "sampling_entropy": 2.5,
            "draw": draw,
            "timing": timing,
            **fields,
        }
    )


def finished(num_steps: int, num_sequences: int = 1, **fields: object):
    results = [
        generation_pb2.SequenceResult(
            sequence_index=i,
            finish_reason=generation_pb2.FINISH_REASON_STOP,
            logprob=-12.5,
        )
        for i in range(num_sequences)
    ]
    return generation_pb2.GenerationFinished(
        **{
            "sequences": results,
            "finish_reason": generation_pb2.FINISH_REASON_STOP,
            "num_prompt_tokens": 5,
            "num_generated_tokens": num_steps * num_sequences,
            "end_time": timestamp(START_NS + 11_000_000 + 4_000_000 * num_steps),
            **fields,
        }
    )


def call(generation_id: str, num_steps: int = 0, **fields: object):
    return call_pb2.Call(
        **{
            "trace_id": TRACE_ID,
            "span_id": server_span_id(generation_id),
            "parent_span_id": CALLER_SPAN_ID,
            "trace_flags": 1,
            "trace_state": "vendor=x",
            "method": "whence.v1.GenerationService/Generate",
            "start_time": timestamp(START_NS),
            "end_time": timestamp(START_NS + 12_000_000 + 4_000_000 * num_steps),
            "generation_id": generation_id,
            "server_address": "127.0.0.1",
            "server_port": 50051,
            **fields,
        }
    )


def caller(method: str = "ResumeGeneration", **fields: object):
    return occurrence_pb2.Caller(
        **{
            "method": f"whence.v1.GenerationService/{method}",
            "trace_id": "c" * 32,
            "span_id": "d" * 16,
            "address": "192.0.2.7",
            "port": 50_000,
            **fields,
        }
    )


def occurrence(elapsed_ns: int, num_steps: int = 0, **happening: object):
    """Return an occurrence at a time after the request's arrival."""
    return occurrence_pb2.Occurrence(
        time=timestamp(START_NS + elapsed_ns), num_steps=num_steps, **happening
    )


@dataclass
class MemoryJournal:
    """Journal in memory, as telemetry reads it; it outlives the exporters that read it."""

    entries: list[Entry] = field(default_factory=list)
    cursors: dict[str, int] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    advances: list[int] = field(default_factory=list)
    committed: asyncio.Event = field(default_factory=asyncio.Event)

    def append(self, generation_id: str, kind: EntryKind, message: Message | None = None) -> Entry:
        offset = 0
        if kind not in OUTSIDE_OFFSETS:
            offset = self.offsets[generation_id] = self.offsets.get(generation_id, 0) + 1
        payload = b"" if message is None else message.SerializeToString()
        entry = Entry(len(self.entries) + 1, generation_id, offset, kind, payload)
        self.entries.append(entry)
        self.committed.set()
        return entry

    def append_generation(
        self, generation_id: str, num_steps: int, num_sequences: int = 1, flags: int = 1
    ) -> None:
        self.append(
            generation_id,
            EntryKind.STARTED,
            started(generation_id, num_sequences=num_sequences, flags=flags),
        )
        for index in range(num_steps):
            for sequence in range(num_sequences):
                self.append(generation_id, EntryKind.STEP, step(index, sequence))
        self.append(generation_id, EntryKind.FINISHED, finished(num_steps, num_sequences))
        self.append(
            generation_id, EntryKind.CALL, call(generation_id, num_steps, trace_flags=flags)
        )

    def delete(self, generation_id: str) -> None:
        self.entries = [
            entry._replace(payload=b"") if entry.generation_id == generation_id else entry
            for entry in self.entries
        ]
        self.append(generation_id, EntryKind.DELETED)
        self.deleted.add(generation_id)

    @property
    def committed_position(self) -> int:
        return len(self.entries)

    async def read_committed(self, after_position: int, limit: int) -> list[Entry]:
        return self.entries[after_position : after_position + limit]

    async def wait_committed(self, after_position: int) -> None:
        while len(self.entries) <= after_position:
            self.committed.clear()
            await self.committed.wait()

    async def read(
        self,
        generation_id: str,
        after_offset: int = 0,
        limit: int = 1024,
        kinds: Collection[EntryKind] | None = None,
    ) -> list[Entry]:
        if generation_id in self.deleted or generation_id not in self.offsets:
            raise GenerationNotFoundError(generation_id, deleted=generation_id in self.deleted)
        found = (
            entry
            for entry in self.entries
            if entry.generation_id == generation_id
            and (entry.offset > after_offset if kinds is None else entry.kind in kinds)
            and (entry.offset > after_offset or entry.kind in OUTSIDE_OFFSETS)
        )
        return [entry for entry, _ in zip(found, range(limit), strict=False)]

    async def read_cursor(self, name: str) -> int:
        return self.cursors.get(name, 0)

    def advance(self, name: str, position: int) -> None:
        self.cursors[name] = position
        self.advances.append(position)
