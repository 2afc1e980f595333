"""Measurements of generations and calls, from journal entries."""

from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.context import Context

from whence.v1.call_pb2 import Call
from whence.v1.generation_pb2 import FinishReason, GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.tracing import SAMPLED
from whence_server.telemetry.grpc_status import is_server_error
from whence_server.telemetry.metrics import attribute_values, catalogue
from whence_server.telemetry.metrics.catalogue import Definition
from whence_server.telemetry.metrics.instruments import Instruments
from whence_server.telemetry.metrics.step_histograms import ModelSteps, StepHistograms
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.origin import Origin, read_origin

_NS = 1e-9
_OWN_ENDS = frozenset(
    {
        FinishReason.FINISH_REASON_END_OF_SEQUENCE,
        FinishReason.FINISH_REASON_STOP,
        FinishReason.FINISH_REASON_LENGTH,
    }
)


@dataclass(slots=True)
class _OpenGeneration:
    """State of a generation that has started and not ended."""

    origin: Origin
    model: str
    operation: str
    steps: ModelSteps
    streamed: bool
    """False for beam search, which sends its tokens at the end."""
    first_elapsed_ns: int | None = None
    last_elapsed_ns: int = 0
    last_index: int = 0
    """Highest step index of any of its sequences."""


@dataclass(slots=True)
class GenerationMetrics:
    """Recorder of measurements from entries in the journal's order.

    A generation that an earlier process started is only counted when it finishes, after
    `note_earlier_start`: its times belong to that process.

    Args:
        instruments: instruments that record the measurements.
        steps: histograms of the steps' values.
    """

    instruments: Instruments
    steps: StepHistograms
    _running: dict[str, _OpenGeneration] = field(default_factory=dict)
    _earlier_starts: dict[str, dict[str, str]] = field(default_factory=dict)
    _num_tokens: dict[str, int] = field(default_factory=dict)

    def has_start(self, generation_id: str) -> bool:
        """Return whether the generation's start was among the entries, and its end was not."""
        return generation_id in self._running

    def note_earlier_start(self, generation_id: str, payload: bytes) -> None:
        """Note the start of a generation that an earlier process began.

        Raises:
            DecodeError: the payload is no GenerationStarted.
        """
        started = GenerationStarted.FromString(payload)
        self._earlier_starts[generation_id] = _make_start_attributes(started)

    def take(self, entry: Entry) -> None:
        """Measure one entry; a deleted one has no measurements.

        Raises:
            DecodeError, ValueError: the payload is not a message of the entry's kind.
        """
        if entry.kind is EntryKind.STEP:
            self._take_step(entry)
        elif entry.kind is EntryKind.STARTED:
            self._take_start(entry)
        elif entry.kind is EntryKind.FINISHED:
            self._take_finish(entry)
        elif entry.kind is EntryKind.CALL and entry.payload:
            self._take_call(Call.FromString(entry.payload))

    def count_tokens(self) -> None:
        """Add the tokens since the last call to the counter, in one addition for each model."""
        for model, number in self._num_tokens.items():
            self.instruments.add(
                catalogue.GENERATED_TOKENS, number, {names.GEN_AI_REQUEST_MODEL: model}
            )
        self._num_tokens.clear()

    def _take_start(self, entry: Entry) -> None:
        if not entry.payload:
            return
        started = GenerationStarted.FromString(entry.payload)
        self._running[entry.generation_id] = _OpenGeneration(
            origin=read_origin(started),
            model=started.model,
            operation=attribute_values.get_operation(started),
            steps=self.steps.get_model_steps(started.model),
            streamed=not started.effective_decoding.HasField("beam_search"),
        )
        self.instruments.add(catalogue.GENERATIONS_STARTED, 1, _make_start_attributes(started))

    def _take_step(self, entry: Entry) -> None:
        running = self._running.get(entry.generation_id)
        if running is None or not entry.payload:
            return
        step = Step.FromString(entry.payload)
        running.last_elapsed_ns = step.timing.elapsed_ns
        if running.first_elapsed_ns is None:
            running.first_elapsed_ns = running.last_elapsed_ns
        running.last_index = max(running.last_index, step.index)
        running.steps.take(step, running.origin)
        self._num_tokens[running.model] = self._num_tokens.get(running.model, 0) + 1

    def _take_finish(self, entry: Entry) -> None:
        running = self._running.pop(entry.generation_id, None)
        begun_before = self._earlier_starts.pop(entry.generation_id, None)
        if not entry.payload:
            return
        finished = GenerationFinished.FromString(entry.payload)
        reason = {
            names.GENERATION_FINISH_REASON: attribute_values.get_finish_reason(
                finished.finish_reason
            )
        }
        if running is not None:
            self._measure(running, finished)
            started = {
                names.GEN_AI_OPERATION_NAME: running.operation,
                names.GEN_AI_REQUEST_MODEL: running.model,
            }
            self.instruments.add(catalogue.GENERATIONS_FINISHED, 1, started | reason)
        elif begun_before is not None:
            self.instruments.add(catalogue.GENERATIONS_FINISHED, 1, begun_before | reason)

    def _measure(self, running: _OpenGeneration, finished: GenerationFinished) -> None:
        record, origin = self.instruments.record, running.origin
        context = _make_context(origin.trace_id, origin.ids.get_generation_id(), origin.trace_flags)
        gen_ai = {
            names.GEN_AI_OPERATION_NAME: running.operation,
            names.GEN_AI_PROVIDER_NAME: names.PROVIDER,
            names.GEN_AI_REQUEST_MODEL: running.model,
            names.GEN_AI_RESPONSE_MODEL: running.model,
        }
        model = {names.GEN_AI_REQUEST_MODEL: running.model}
        error = attribute_values.get_error_type(finished)
        failed = {} if error is None else {names.ERROR_TYPE: error}
        duration_ns = max(finished.end_time.ToNanoseconds() - origin.start_time_ns, 0)
        record(catalogue.REQUEST_DURATION, duration_ns * _NS, gen_ai | failed, context)
        record(catalogue.QUEUE_DURATION, finished.queue_ns * _NS, model, context)
        record(catalogue.PREFILL_DURATION, finished.prefill_ns * _NS, model, context)
        for token_type, number in (
            ("input", finished.num_prompt_tokens),
            ("output", finished.num_generated_tokens),
        ):
            attributes = gen_ai | {catalogue.TOKEN_TYPE: token_type}
            record(catalogue.TOKEN_USAGE, number, attributes, context)
        self.instruments.add(catalogue.PROMPT_TOKENS, finished.num_prompt_tokens, model)
        num_cached = finished.num_cached_prompt_tokens
        self.instruments.add(catalogue.CACHED_PROMPT_TOKENS, num_cached, model)
        first_ns = running.first_elapsed_ns
        if finished.finish_reason not in _OWN_ENDS or not running.streamed or first_ns is None:
            return
        record(catalogue.TIME_TO_FIRST_TOKEN, first_ns * _NS, gen_ai, context)
        if running.last_index:
            per_token_ns = (running.last_elapsed_ns - first_ns) / running.last_index
            record(catalogue.TIME_PER_OUTPUT_TOKEN, per_token_ns * _NS, gen_ai, context)

    def _take_call(self, call: Call) -> None:
        definition, attributes = _describe_call(call)
        context = _make_context(
            bytes.fromhex(call.trace_id), bytes.fromhex(call.span_id), call.trace_flags
        )
        duration_ns = max(call.end_time.ToNanoseconds() - call.start_time.ToNanoseconds(), 0)
        self.instruments.record(definition, duration_ns * _NS, attributes, context)


UNREADABLE = (DecodeError, ValueError)
"""Exceptions of `take` and `note_earlier_start`."""


def _describe_call(call: Call) -> tuple[Definition, dict[str, str | int]]:
    """Return the histogram of a call's protocol, and the call's attributes."""
    attributes: dict[str, str | int]
    if call.HasField("http"):
        http = call.http
        attributes = {
            names.HTTP_REQUEST_METHOD: attribute_values.get_http_method(http.method),
            names.HTTP_ROUTE: attribute_values.get_route(http.route),
            names.HTTP_RESPONSE_STATUS_CODE: http.status_code,
            names.URL_SCHEME: "http",
        }
        if http.status_code >= 500:
            attributes[names.ERROR_TYPE] = str(http.status_code)
        return catalogue.HTTP_DURATION, attributes
    status = attribute_values.get_status(call.status_code)
    attributes = {
        names.RPC_SYSTEM_NAME: "grpc",
        names.RPC_METHOD: attribute_values.get_method(call.method),
        names.RPC_RESPONSE_STATUS_CODE: status,
    }
    if is_server_error(call.status_code):
        attributes[names.ERROR_TYPE] = status
    return catalogue.CALL_DURATION, attributes


def _make_start_attributes(started: GenerationStarted) -> dict[str, str]:
    return {
        names.GEN_AI_OPERATION_NAME: attribute_values.get_operation(started),
        names.GEN_AI_REQUEST_MODEL: started.model,
    }


def _make_context(trace_id: bytes, span_id: bytes, trace_flags: int) -> Context:
    """Make a context with a value's span, from which its exemplar takes the ids."""
    if not trace_flags & SAMPLED:
        return Context()
    span_context = trace.SpanContext(
        int.from_bytes(trace_id),
        int.from_bytes(span_id),
        is_remote=False,
        trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())
