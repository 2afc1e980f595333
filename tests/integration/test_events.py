"""Prompts and outputs as OpenTelemetry log records, where the operator wants them there."""

import queue
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

PROMPT = "zanzibar quokka"
TIMEOUT_S = 60.0


class Collector(logs_service_pb2_grpc.LogsServiceServicer):
    """Takes log records over gRPC; refuses what `refuses` names, and counts spans apart."""

    def __init__(self) -> None:
        self.records: queue.Queue[LogRecord] = queue.Queue()
        self.endpoint = ""
        self.refuses = ""
        self.refused: queue.Queue[bytes] = queue.Queue()

    def Export(  # noqa: N802 - the service's own name
        self, request: logs_service_pb2.ExportLogsServiceRequest, context: grpc.ServicerContext
    ) -> logs_service_pb2.ExportLogsServiceResponse:
        (resource_logs,) = request.resource_logs
        names = {a.key: a.value.string_value for a in resource_logs.resource.attributes}
        assert names["service.name"] == "whence"
        for scope_logs in resource_logs.scope_logs:
            assert scope_logs.scope.name == "whence"
            for record in scope_logs.log_records:
                if self.refuses and self.refuses in str(record):
                    self.refused.put(record.trace_id)
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this one")
                self.records.put(record)
        return logs_service_pb2.ExportLogsServiceResponse()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    collector = Collector()
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    collector.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    yield collector
    server.stop(None)


@pytest.fixture(scope="module")
def process(
    tiny_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    collector: Collector,
) -> Iterator[ServerProcess]:
    environment = {
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "EVENT_ONLY",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": collector.endpoint,
    }
    directory = tmp_path_factory.mktemp("events")
    with ServerProcess(tiny_model("gpt2"), directory, environment=environment) as process:
        yield process


def generate(target: str, prompt: str) -> g.GenerationFinished:
    request = g.GenerateRequest(
        prompt=prompt, decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=6, ignore_eos=True)
    )
    with grpc.insecure_channel(target) as channel:
        responses = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request))
        return responses[-1].event.finished


def test_an_event_holds_prompt_and_output(process: ServerProcess, collector: Collector) -> None:
    finished = generate(process.target, PROMPT)
    record = collector.records.get(timeout=TIMEOUT_S)
    assert record.event_name == "gen_ai.client.inference.operation.details"
    attributes = {a.key: a.value for a in record.attributes}
    assert PROMPT in str(attributes["gen_ai.input.messages"])
    (message,) = attributes["gen_ai.output.messages"].array_value.values
    fields = {pair.key: pair.value for pair in message.kvlist_value.values}
    (part,) = fields["parts"].array_value.values
    content = {pair.key: pair.value.string_value for pair in part.kvlist_value.values}
    assert content["content"] == finished.sequences[0].text
    generate(process.target, "The quick")
    following = collector.records.get(timeout=TIMEOUT_S)
    assert "The quick" in str(following), "one event a generation"


def test_a_refused_event_is_set_aside_and_the_next_arrives(
    process: ServerProcess, collector: Collector
) -> None:
    collector.refuses = "quokka"
    generate(process.target, PROMPT)
    collector.refused.get(timeout=TIMEOUT_S)
    generate(process.target, "The quick")
    record = collector.records.get(timeout=TIMEOUT_S)
    assert "The quick" in str(record)
    assert process.terminate() == 0
    (line,) = [line for line in process.log if "is set aside" in line]
    assert "event gen_ai.client.inference.operation.details of trace" in line
    assert "quokka" not in "".join(process.log)
