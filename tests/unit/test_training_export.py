"""The trace of a training reaches a collector: beside it, after a kill, after an outage."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import training_records as records
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from telemetry_registry import Held

from whence.v1.training_pb2 import TrainingEvent
from whence_server.demo.model import ensure_demo_model
from whence_server.demo.receiver import Fail, Receiver, Reject
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.domain.otlp import OtlpSettings
from whence_server.domain.telemetry import PushOptions
from whence_server.lineage.writer import RecordWriter
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.export.sinks import make_sink
from whence_server.telemetry.training.metrics import ALL, TrainingMetrics
from whence_server.telemetry.training.trace import TrainingTrace
from whence_server.training.export import start as telemetry
from whence_server.training.export.trace_cursor import TraceCursor
from whence_server.training.train import train as training
from whence_server.training.train.train import TrainingResult

DOCUMENT = (Path(__file__).parents[2] / "docs" / "training-telemetry.md").read_text(
    encoding="utf-8"
)

TRAINER = """
import sys, time
from pathlib import Path
from whence_server.training.export import start as telemetry
exporter = telemetry.start(Path(sys.argv[1]))
print(exporter._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A collector, whose spans are compared with the registry in the end."""
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.close()
    held = Held()
    held.add_spans(receiver.spans)
    assert sorted(held.complaints) == []


def environment(receiver: Receiver) -> dict[str, str]:
    return {
        **os.environ,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver.endpoint,
        "OTEL_METRICS_EXPORTER": "none",
    }


def ids(spans: list[Span]) -> set[bytes]:
    return {span.span_id for span in spans}


def expected(events: list) -> list[Span]:
    trace = TrainingTrace()
    return [span for event in events for span in trace.make_spans(event)]


async def no_sleep(seconds: float) -> None:
    del seconds
    await asyncio.sleep(0)


async def send(record: Path, receiver: Receiver, sampler: Sampler = ALWAYS_ON) -> TraceCursor:
    sink = make_sink(OtlpSettings(endpoint=receiver.endpoint))
    cursor = TraceCursor(
        record, sink, make_service_resource("0"), "0", sampler=sampler, sleep=no_sleep
    )
    while await cursor.advance():
        pass
    await cursor.send_closing_spans()
    await sink.close()
    return cursor


async def test_a_training_under_way_is_followed_and_its_end_is_sent(
    tmp_path: Path, receiver: Receiver
) -> None:
    events = records.whole_run()
    record = tmp_path / "lineage.binpb"
    writer = RecordWriter.create(record, events[0])
    exporter = telemetry.start(record, environment(receiver))
    assert exporter is not None
    for event in events[1:6]:
        writer.append(event)
    await receiver.wait_for(1)  # while it is written
    for event in events[6:]:
        writer.append(event)
    writer.close()
    assert await asyncio.to_thread(exporter.close)
    assert [span.SerializeToString() for span in receiver.spans] == [
        span.SerializeToString() for span in expected(events)
    ]
    root = receiver.spans[-1]
    assert (root.trace_id.hex(), root.span_id.hex()) == (records.TRACE_ID, records.SPAN_ID)
    cursor = json.loads((tmp_path / "lineage.binpb.sent").read_text())
    assert cursor == {"training_run_id": records.RUN, "position": len(events)}


async def test_the_demos_training_is_sent_whole_before_its_record_is_moved(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = records.whole_run()

    def trains(given: dict[str, Any]) -> TrainingResult:
        directory = Path(given["output"])
        directory.mkdir()
        writer = RecordWriter.create(directory / "lineage.binpb", events[0])
        telemetry.start(writer.path, environment(receiver))
        for event in events[1:]:
            writer.append(event)
        writer.close()
        return TrainingResult(directory, 1.0)

    monkeypatch.setattr(training, "train", trains)
    directory = await asyncio.to_thread(ensure_demo_model, tmp_path)
    assert ids(receiver.spans) == ids(expected(events))
    cursor = json.loads((directory / "lineage.binpb.sent").read_text())
    assert cursor["position"] == len(events)


def test_where_no_endpoint_is_set_nothing_is_started_or_imported(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from whence_server.training.export import start as telemetry
assert telemetry.start(Path("nowhere"), {}) is None
print(*[name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "grpc")])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert result.stdout.split() == []


def test_training_process_does_not_import_the_exporter() -> None:
    code = """
import subprocess, sys
from pathlib import Path
from whence_server.training.export import start as telemetry
subprocess.Popen = lambda *arguments, **options: print("started")
telemetry.start(Path("x"), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
print(*[name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "grpc")])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["started"]


async def test_a_resumed_run_goes_on_at_its_cursor(tmp_path: Path, receiver: Receiver) -> None:
    events = [records.started(), records.attempt(), records.step(1), records.step(2)]
    record = records.write(tmp_path, events)
    await send(record, receiver)
    # Killed: what had no end was closed as of then.
    assert [span.name for span in receiver.spans] == [
        *["optimizer_step"] * 2,
        "epoch",
        "training_attempt",
        "training_run",
    ]
    more = [records.attempt(2, resumed_step=1, offset_ns=10**9), records.step(2, 2)]
    more.append(records.finished(60, 2))
    writer = RecordWriter.resume(record)
    for event in more:
        writer.append(event)
    writer.close()
    before = len(receiver.spans)
    await send(record, receiver)
    again = receiver.spans[before:]
    sent = {span.SerializeToString() for span in again}
    assert sent == {span.SerializeToString() for span in expected(events + more)[2:]}
    assert [span.span_id for span in again if span.name == "optimizer_step"] != ids(
        receiver.spans[:2]
    )
    before = len(receiver.spans)
    await send(record, receiver)
    assert receiver.spans[before:] == []


async def test_outage_and_rejection_do_not_lose_other_spans(
    tmp_path: Path, receiver: Receiver
) -> None:
    events = records.whole_run()
    record = records.write(tmp_path, events)
    receiver.answers += [Fail(grpc.StatusCode.UNAVAILABLE)] * 3
    cursor = await send(record, receiver)
    assert ids(receiver.spans) == ids(expected(events))
    assert cursor.stats.num_retries == 3
    (tmp_path / "lineage.binpb.sent").unlink()
    receiver.answers.append(Reject(2, "two are too old"))
    cursor = await send(record, receiver)
    assert cursor.stats.num_rejected == 2
    assert cursor.stats.last_error == "PARTIAL_SUCCESS: two are too old"


async def test_unreachable_collector_delays_the_end_for_a_bounded_time(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    record = records.write(tmp_path, records.whole_run())
    await receiver.stop()
    exporter = telemetry.start(record, environment(receiver))
    assert exporter is not None
    assert not await asyncio.to_thread(exporter.close, 2.0)
    assert f"-m whence_server.training.export {record}" in caplog.text
    await receiver.start()
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "whence_server.training.export", str(record)],
        env=environment(receiver),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert ids(receiver.spans) == ids(expected(records.whole_run()))


def test_surviving_forked_worker_does_not_delay_the_end_of_the_export(tmp_path: Path) -> None:
    record = records.write(tmp_path, records.whole_run())
    code = """
import multiprocessing, sys, time
from pathlib import Path
from whence_server.training.export import start as telemetry
exporter = telemetry.start(Path(sys.argv[1]))
assert telemetry.start(Path(sys.argv[1])) is exporter
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
worker.start()
assert exporter.close()
worker.kill()
"""
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "console"}
    subprocess.run([sys.executable, "-c", code, str(record)], env=environment, check=True)


async def test_a_killed_trainer_leaves_no_exporter_behind(
    tmp_path: Path, receiver: Receiver
) -> None:
    events = [records.started(), records.attempt(), records.step(1)]
    record = records.write(tmp_path, events)
    trainer = subprocess.Popen(  # noqa: ASYNC220 - started, and not waited for
        [sys.executable, "-c", TRAINER, str(record)],
        env=environment(receiver),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert trainer.stdout is not None
    exporter = int(trainer.stdout.readline())
    await receiver.wait_for(1)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    await receiver.wait_for(4)
    assert receiver.spans[-1].name == "training_run"
    async with asyncio.timeout(30):
        while _runs(exporter):  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.02)


async def test_an_unsampled_run_makes_no_spans(tmp_path: Path, receiver: Receiver) -> None:
    record = records.write(tmp_path, records.whole_run())
    await send(record, receiver, ALWAYS_OFF)
    assert receiver.spans == []


async def test_bad_variables_and_bad_records_are_refused(
    tmp_path: Path, receiver: Receiver
) -> None:
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT 'ftp://x'"):
        telemetry.start(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://x"})
    without_ids = records.started()
    without_ids.started.trace_id = "0" * 32
    record = records.write(tmp_path, [without_ids])
    with pytest.raises(LineageError, match="its run has no trace"):
        await send(record, receiver)
    for arguments, message in (
        ([str(tmp_path / "none")], "none cannot be read: No such file"),
        ([str(record)], "no destination is set: set OTEL_EXPORTER_OTLP_ENDPOINT"),
    ):
        result = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "whence_server.training.export", *arguments],
            env=environment(receiver) if "none" in arguments[0] else {},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        assert message in result.stderr


class Collecting(MetricExporter):
    """Exporter that keeps the metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[MetricsData] = []

    def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
        self.given.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        pass


def pushed(events: Iterable[TrainingEvent]) -> MetricsData:
    """Return a run's metrics in the push at its end."""
    exporter = Collecting()
    options = PushOptions(OtlpSettings(endpoint="http://127.0.0.1:1"), 3600.0)
    metrics = TrainingMetrics(make_service_resource("0"), "0", exporter, options)
    for event in events:
        metrics.record(event)
    assert metrics.close(5.0)
    return exporter.given[0]


def test_metrics_equal_the_values_of_the_steps() -> None:
    data = pushed(records.whole_run())
    (scope,) = data.resource_metrics[0].scope_metrics
    points = {metric.name: metric.data.data_points[0] for metric in scope.metrics}
    assert {metric.name: metric.unit for metric in scope.metrics} == {
        it.name: it.unit for it in ALL
    }
    assert points["whence.training.loss"].value == 4.0 / 8
    assert points["whence.training.evaluation.loss"].value == 2.5
    assert points["whence.training.tokens"].value == 8 * 32
    assert points["whence.training.throughput"].value == pytest.approx(32 / 0.02)
    duration = points["whence.training.step.duration"]
    assert (duration.count, duration.sum) == (8, pytest.approx(8 * 0.02))
    non_finite = points.pop("whence.training.non_finite")
    assert (non_finite.value, len(non_finite.attributes)) == (0, 2)
    assert {str(dict(point.attributes)) for point in points.values()} == {
        "{'whence.training.run_name': 'tiny'}"
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_non_finite_values_are_exported_and_counted(value: float) -> None:
    """A gauge that went on showing the last good loss would keep every alert quiet."""
    bad_step, bad_evaluation = records.step(2), records.evaluation(2)
    bad_step.step.loss = bad_step.step.grad_norm = bad_step.step.learning_rate = value
    bad_evaluation.evaluation.metrics["eval_loss"] = value
    bad_evaluation.evaluation.metrics["eval_wiki_loss"] = value
    good = [records.started(), records.attempt(), records.step(1), records.evaluation(1)]
    data = pushed([*good, bad_step, bad_evaluation])
    # As it travels: what a backend is sent.
    (resource,) = encode_metrics(data).resource_metrics
    sent = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    for name in ("loss", "grad_norm", "learning_rate", "evaluation.loss"):
        (point,) = sent[f"whence.training.{name}"].gauge.data_points
        assert str(point.as_double) == str(value)
    counts = {
        pair.value.string_value: point.as_int
        for point in sent["whence.training.non_finite"].sum.data_points
        for pair in point.attributes
        if pair.key == "whence.training.quantity"
    }
    assert counts == {"loss": 1, "grad_norm": 1, "learning_rate": 1, "evaluation_loss": 2}


def test_every_metric_is_documented_and_no_other() -> None:
    documented = [line for line in DOCUMENT.splitlines() if line.startswith("| `whence.")]
    assert documented == [
        f"| `{it.name}` | {it.kind.value} | `{it.unit}` | {it.description} |" for it in ALL
    ]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
