"""A real training, from its first step to its proof: traced while it runs, verified, explained."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from span_reading import assert_apart, attributes, named
from tiny_models import byte_level_tokenizer
from tiny_training import Rows, events_in, same_bits, trainer_of, weights_of
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training import record
from whence_server.training.emergence.process import Question, trace
from whence_server.training.export import start as telemetry
from whence_server.training.verify.findings import Verdict
from whence_server.training.verify.verify import verify

NUM_STEPS = 12


class HttpCollector:
    """Takes OTLP over HTTP, all of it."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.bodies.append((self.path, body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self) -> list[Span]:
        requests = [
            ExportTraceServiceRequest.FromString(body)
            for path, body in self.bodies
            if path == "/v1/traces"
        ]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[str, Any]:
        """The newest of each name, with its resource's attributes."""
        found = {}
        for path, body in self.bodies:
            if path == "/v1/metrics":
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope in resource.scope_metrics:
                        found |= {metric.name: (metric, resource) for metric in scope.metrics}
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[HttpCollector]:
    collector = HttpCollector()
    yield collector
    collector.close()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_trainer(directory: Path) -> Trainer:
    """A trainer as any script makes one: two epochs, evaluation and a checkpoint after each."""
    torch.manual_seed(11)
    config = GPT2Config(
        vocab_size=416,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    config.loss_type = "ForCausalLM"
    trainer = trainer_of(
        directory,
        Rows(22),
        model=GPT2LMHeadModel(config),
        eval_dataset=Rows(4),
        eval_strategy="epoch",
        save_strategy="epoch",
        dataloader_num_workers=2,
    )
    trainer.processing_class = byte_level_tokenizer()
    return trainer


async def test_a_training_is_a_trace_and_its_weights_can_be_proven(
    tmp_path: Path, collector: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    untracked = tiny_trainer(tmp_path / "untracked")
    untracked.train()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    directory = tmp_path / "tracked"
    trainer = tiny_trainer(directory)
    record(trainer, name="proof")
    trainer.train()
    trainer.save_model()
    exporter = telemetry.start(directory / RECORD_NAME)
    assert exporter is not None
    assert await asyncio.to_thread(exporter.close)

    assert same_bits(weights_of(untracked), weights_of(trainer)), "exporting changes no bit"
    _check_trace(events_in(directory), collector)
    for where, step in ((".", 12), ("checkpoint-6", 6), ("checkpoint-12", 12)):
        report = verify(directory / where)
        assert (report.verdict, report.findings, report.step) == (Verdict.VERIFIED, [], step)
    answers = list(trace(Question(directory / RECORD_NAME, "The quick", " brown fox")))
    assert list(answers[0].started.steps) == [6, 12]
    interval = answers[-1].interval
    # Pass by pass over the data, in an order of its own: all rows once more.
    assert sorted(interval.example_ids) == list(range(22))
    assert abs(interval.gap) < 0.01 * max(abs(interval.change), 0.1)
    assert len(interval.group_changes) == len(events_in(directory)[0].started.groups)


def _check_trace(events: list[Any], collector: HttpCollector) -> None:
    started = events[0].started
    spans = collector.spans()
    assert {span.trace_id.hex() for span in spans} == {started.trace_id}
    by_id = {span.span_id: span for span in spans}
    steps = named(spans, "optimizer_step")
    recorded = [event.step for event in events if event.WhichOneof("event") == "step"]
    assert len(recorded) == NUM_STEPS
    for span, step in zip(steps, recorded, strict=True):
        there = attributes(span)
        assert there["whence.training.step.number"] == step.step
        assert there["whence.training.loss"] == step.loss
        assert there["whence.training.step.example_ids"] == list(step.ranks[0].example_ids)
        epoch = by_id[span.parent_span_id]
        assert epoch.name == "epoch"
        attempt = by_id[epoch.parent_span_id]
        root = by_id[attempt.parent_span_id]
        assert (root.name, root.span_id.hex(), root.parent_span_id) == (
            "training_run",
            started.span_id,
            b"",
        )
    for parent in {span.parent_span_id for span in spans if span.parent_span_id}:
        assert_apart([span for span in by_id.values() if span.parent_span_id == parent])
    assert len(named(spans, "epoch")) == len(named(spans, "evaluation")) == 2
    # Those of the trainer, and the final model's.
    assert len(named(spans, "checkpoint")) == 3
    metric, resource = collector.metrics()["whence.training.loss"]
    assert metric.gauge.data_points[0].as_double == recorded[-1].loss
    about = {it.key: it.value.string_value for it in resource.resource.attributes}
    assert about["service.name"] == "whence-training"
    assert about["service.instance.id"] == started.training_run_id


def test_a_malformed_variable_ends_a_training_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    trainer = tiny_trainer(tmp_path)
    record(trainer)
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_TIMEOUT 'soon'"):
        trainer.train()
    assert not (tmp_path / RECORD_NAME).exists()
