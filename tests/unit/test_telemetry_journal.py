"""The exporter over the real journal, through restarts of both."""

import asyncio

from journal_export import JournalExport
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from telemetry_journal import call, finished, started, step

from whence_server.demo.receiver import Receiver, Wait
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.otlp import OtlpSettings
from whence_server.journal.journal import FinishIndex, GenerationIndex, Journal
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.spans.encoder import SpanEncoder


def begin(journal: Journal, generation_id: str) -> None:
    message = started(generation_id)
    index = GenerationIndex(generation_id, message.trace_id, "demo", 1, "", {}, "", 0)
    journal.create(index, message.SerializeToString())


def append_steps(journal: Journal, generation_id: str, indices: range) -> None:
    for index in indices:
        journal.append(generation_id, EntryKind.STEP, step(index).SerializeToString())


def end(journal: Journal, generation_id: str, num_steps: int) -> None:
    index = FinishIndex(FinishReason.STOP, num_steps, "")
    journal.finish(generation_id, finished(num_steps).SerializeToString(), index)
    journal.record_call(generation_id, call(generation_id, num_steps).SerializeToString())


def exporter_of(journal: Journal, receiver: Receiver) -> JournalExport:
    sink = OtlpGrpcSink(OtlpSettings(endpoint=receiver.endpoint))
    return JournalExport(journal, sink, max_batch_spans=32, max_backoff_s=0.1)


async def test_every_span_arrives_over_restarts_and_deletion(tmp_path):
    receiver = Receiver()
    await receiver.start()
    journal = await Journal.open(tmp_path)
    exporter = exporter_of(journal, receiver)
    exporter.start()
    begin(journal, "g1")
    append_steps(journal, "g1", range(100))
    await journal.flush()
    assert await exporter.flush(60)
    assert receiver.num_spans == 100  # the parents come with the end

    receiver.answers.append(Wait(3600))
    append_steps(journal, "g1", range(100, 150))
    await journal.flush()
    assert not await exporter.flush(0.1)
    await exporter.close()
    await journal.close()

    journal = await Journal.open(tmp_path)
    exporter = exporter_of(journal, receiver)
    exporter.start()
    end(journal, "g1", 150)
    begin(journal, "g2")
    append_steps(journal, "g2", range(3))
    end(journal, "g2", 3)
    await journal.flush()
    assert await exporter.flush(60)
    assert exporter.measure_lag().num_entries == 0

    encoder = SpanEncoder(journal)
    # Serialised as protobuf does it: the encoder's own bytes may have their fields in any order.
    expected = {
        ScopeSpans.FromString(piece).SerializeToString()
        for entry in await journal.read_committed(0, 1_000)
        for piece in await encoder.encode(entry)
    }
    assert len(expected) == 150 + 3 + 2 * 3
    assert {ScopeSpans(spans=[span]).SerializeToString() for span in receiver.spans} == expected

    await journal.delete("g1")
    fresh = SpanEncoder(journal)
    left = [
        piece
        for entry in await journal.read_committed(0, 1_000)
        for piece in await fresh.encode(entry)
    ]
    assert len(left) == 6
    # With a generation gone, the exporter goes on.
    await journal.flush()
    assert await exporter.flush(60)
    assert exporter.stats.num_unreadable == 0
    await exporter.close()
    await asyncio.gather(journal.close(), receiver.close())
