"""A real OpenTelemetry Collector that refuses everything until its configuration is mended."""

import asyncio
import re
from pathlib import Path

import pytest
import yaml
from backend_process import find_free_port, run_backend
from journal_export import JournalExport
from required import find_program
from span_reading import only_span
from telemetry_journal import MemoryJournal

from whence_server.domain.otlp import OtlpProtocol, OtlpSettings
from whence_server.telemetry.export.sinks import make_sink
from whence_server.telemetry.spans.encoder import SpanEncoder

RIGHT: dict[str, object] = {}
HTTP = OtlpProtocol.HTTP_PROTOBUF
WRONG = {
    "a body limit below any request": (HTTP, {"max_request_body_size": 10}, "400 "),
    "another path": (HTTP, {"traces_url_path": "/elsewhere"}, "404 "),
    "HTTP in the place of gRPC": (OtlpProtocol.GRPC, None, "UNAVAILABLE: "),
}
SPAN_ID = re.compile(r"^    ID +: ([0-9a-f]{16})$", re.MULTILINE)
TIMEOUT_S = 120.0


def configuration(directory: Path, protocol: OtlpProtocol, port: int, receiver: object) -> Path:
    """Write the configuration of a Collector that writes all spans to a file."""
    listen = {"endpoint": f"127.0.0.1:{port}"}
    if receiver is None:  # the other protocol on our port
        protocols: dict[str, object] = {"http": listen}
    elif protocol is OtlpProtocol.GRPC:
        protocols = {"grpc": listen}
    else:
        protocols = {"http": {**listen, **receiver}}
    written = {
        "receivers": {"otlp": {"protocols": protocols}},
        "exporters": {"debug": {"verbosity": "detailed"}},
        "service": {
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["debug"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
    }
    path = directory / "collector.yaml"
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    return path


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("protocol", "receiver", "answer"), WRONG.values(), ids=WRONG)
async def test_nothing_is_lost_to_a_collector_that_is_mended(
    tmp_path: Path, protocol: OtlpProtocol, receiver: object, answer: str
) -> None:
    program, port = find_program("otelcol"), find_free_port()
    path = "" if protocol is OtlpProtocol.GRPC else "/v1/traces"
    destination = OtlpSettings(endpoint=f"http://127.0.0.1:{port}{path}", protocol=protocol)
    journal = MemoryJournal()
    journal.append_generation("g1", num_steps=40)
    journal.append_generation("g2", num_steps=40)
    exporter = JournalExport(
        journal,
        make_sink(destination),
        max_batch_spans=16,
        patience=4,
        long_patience=8,
        sleep=lambda _: asyncio.sleep(0.01),
    )
    wrong = configuration(tmp_path, protocol, port, receiver)
    with run_backend([program, "--config", str(wrong)], tmp_path / "wrong"):
        exporter.start()
        async with asyncio.timeout(TIMEOUT_S):
            while not exporter.stats.last_error.startswith(answer):  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.05)
            begin = exporter.stats.num_requests
            while exporter.stats.num_requests < begin + 100:  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.05)
        assert exporter.stats.retrying
        assert exporter.stats.num_exported == 0
    right = configuration(tmp_path, protocol, port, RIGHT)
    with run_backend([program, "--config", str(right)], tmp_path / "right"):
        assert await exporter.flush(TIMEOUT_S)
        assert not exporter.stats.refusing
        taken = (tmp_path / "right" / "log").read_text()
    await exporter.close()
    assert (exporter.stats.num_set_aside, exporter.stats.num_rejected) == (0, 0)
    assert set(SPAN_ID.findall(taken)) == await span_ids(journal)


async def span_ids(journal: MemoryJournal) -> set[str]:
    encoder = SpanEncoder(journal)
    pieces = [piece for entry in journal.entries for piece in await encoder.encode(entry)]
    return {only_span(piece).span_id.hex() for piece in pieces}
