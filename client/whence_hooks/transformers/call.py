"""One call of `generate` while it runs: its steps are measured and handed to the recorder."""

import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import torch
from google.protobuf.timestamp_pb2 import Timestamp
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from whence.propagation import TRACEPARENT, TRACESTATE, add_trace_context
from whence.v1.generation_pb2 import (
    ContentPolicy,
    Failure,
    FinishReason,
    TraceDetail,
    TraceOptions,
)
from whence.v1.record_pb2 import BatchBegun, BatchEnded, BatchPrompt, RecordGenerationsRequest
from whence.v1.step_pb2 import StepTiming
from whence_hooks.recorder import Recorder
from whence_hooks.transformers import beams
from whence_hooks.transformers.identity import IdentifiedModel
from whence_hooks.transformers.measure import Layout, Scratch, StepMeter
from whence_hooks.transformers.pending import PendingSteps
from whence_hooks.transformers.refusals import NotRecordableError, check_input
from whence_hooks.transformers.settings import (
    describe_configured,
    describe_decoding,
    list_eos_token_ids,
    name_processors,
)
from whence_hooks.transformers.steps import StepMessages
from whence_hooks.transformers.transfer import HostTable
from whence_hooks.transformers.watching import (
    WatchedCriteria,
    WatchedProcessors,
    list_reasons,
)

_log = logging.getLogger("whence_hooks")

_MESSAGE_BYTES = 200
"""Estimated size of a message besides its numbers."""
_INTERNAL, _UNKNOWN = 13, 2
_LONGEST_WAIT_S = 2.0
"""Time for which a flush waits for a thread that measures, in seconds."""

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Destination:
    """Recorder of the calls inside one block, and what the block says of them."""

    recorder: Recorder
    model: IdentifiedModel
    num_candidates: int
    content: ContentPolicy.ValueType = ContentPolicy.CONTENT_POLICY_UNSPECIFIED
    labels: dict[str, str] = field(default_factory=dict)
    skips_unsupported: bool = False


def _guarded(method: Callable[P, None]) -> Callable[P, None]:
    """Wrap a method of `RecordedCall`, so that its faults end the record and not the service."""

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        call: Any = args[0]
        if call.is_active:
            try:
                method(*args, **kwargs)
            except NotRecordableError:
                raise
            except Exception:  # noqa: BLE001 - whatever fails here, the service goes on
                _log.exception("the record of a generation ends, as its step cannot be measured")
                call.is_broken = True

    return run


class RecordedCall:
    """One call of `generate`, as a batch of the recorder.

    Args:
        destination: recorder, and what the block says of its calls.

    Attributes:
        is_broken: True if a step could not be measured; the generations then end as failed.
    """

    def __init__(self, destination: Destination) -> None:
        self.is_broken = False
        self._destination = destination
        self._start_time_ns = time.time_ns()
        self._start_ns = time.monotonic_ns()
        self._batch_number = 0
        self._num_lost = 0
        self._shape = (0, 0, 0)
        self._prefill_begin_ns = self._prefill_end_ns = 0
        self._last_ns = self._logits_ns = 0
        self._layout = Layout(destination.num_candidates, 0)
        self._scratch = Scratch()
        self._pending = PendingSteps(self._layout)
        self._can_wait = False
        self._lock = threading.Lock()
        self._meter: StepMeter | None = None
        self._messages: StepMessages | beams.BeamMessages | None = None
        self._reasons: list[FinishReason.ValueType] = []
        self._continuations: beams.Continuations | None = None
        self._table: torch.Tensor | None = None
        self._outcome: beams.Outcome | None = None
        self._num_prompt_tokens = 0

    @property
    def is_active(self) -> bool:
        """True if a batch was begun and its steps are still recorded."""
        return self._batch_number > 0 and not self.is_broken

    # ---- the start ----

    def check(self, check: Callable[[], None]) -> None:
        """Run a check; a call that cannot be recorded is refused, or runs unrecorded.

        Raises:
            NotRecordableError: the block refuses calls that cannot be recorded.
        """
        try:
            check()
        except NotRecordableError as error:
            if not self._destination.skips_unsupported:
                raise
            _log.warning("%s", error)
            self.is_broken = True

    def prepare(
        self, config: Any, input_ids: Any, mask: Any, processors: LogitsProcessorList
    ) -> LogitsProcessorList:
        """Begin the batch; return the processors to use.

        Args:
            config: the generation config that `generate` prepared.
            input_ids: [prompts, T], the padded prompts.
            mask: [rows, T], 0 where a prompt is padded; None without padding.
            processors: the call's processors, in order.

        Raises:
            NotRecordableError: the prompts have no token ids.
        """
        self.check(lambda: check_input(input_ids, config))
        if self.is_broken:
            return processors
        try:
            self._begin(config, input_ids, mask, processors)
        except Exception:  # noqa: BLE001 - whatever fails here, the service goes on
            _log.exception("a generation is not put on record, as its start cannot be described")
            return processors
        return WatchedProcessors(processors, self) if self.is_active else processors

    def _begin(
        self, config: Any, input_ids: torch.Tensor, mask: Any, processors: LogitsProcessorList
    ) -> None:
        num_prompts, length = input_ids.shape
        names = name_processors(processors)
        self._layout = Layout(self._find_num_candidates(), len(names))
        self._shape = (num_prompts, config.num_return_sequences, config.num_beams)
        self._num_prompt_tokens = length
        self._pending = PendingSteps(self._layout)
        # A service that is given the scores can change them.
        self._can_wait = not (config.output_scores or config.output_logits)
        prompts = _list_prompts(input_ids, mask)
        trace_context = dict(add_trace_context({}))
        begun = BatchBegun(
            start_time=_make_timestamp(self._start_time_ns),
            decoding=describe_decoding(config, length),
            configured_decoding=describe_configured(config, length),
            trace=TraceOptions(
                detail=TraceDetail.TRACE_DETAIL_DECISIONS,
                num_candidates=self._layout.num_candidates,
                content=self._destination.content,
            ),
            processor_names=names,
            eos_token_ids=list_eos_token_ids(config),
            labels=self._destination.labels,
            traceparent=trace_context.get(TRACEPARENT, ""),
            tracestate=trace_context.get(TRACESTATE, ""),
            prompts=[
                BatchPrompt(generation_id=str(uuid.uuid4()), token_ids=prompt) for prompt in prompts
            ],
        )
        version = self._destination.model.read_version()
        self._batch_number = self._destination.recorder.begin(
            lambda number: self._make_begun(begun, number, version),
            num_prompts,
            begun.ByteSize() + _MESSAGE_BYTES,
            self.submit_pending,
        )

    def _find_num_candidates(self) -> int:
        return min(self._destination.num_candidates, self._destination.model.vocabulary_size)

    def _make_begun(
        self, begun: BatchBegun, batch_number: int, version: int
    ) -> Iterator[RecordGenerationsRequest]:
        begun.batch_number = batch_number
        begun.model_number = self._destination.model.find_number(
            self._destination.recorder, version
        )
        yield RecordGenerationsRequest(begun=begun)

    def watch(self, criteria: StoppingCriteriaList) -> StoppingCriteriaList:
        """Return the stopping criteria to use; the prompts are read next."""
        if not self.is_active:
            return criteria
        num_prompts, num_returned, num_beams = self._shape
        reasons = self._reasons = list_reasons(criteria)
        self._messages = (
            beams.BeamMessages(
                self._batch_number, self._layout, num_prompts, num_beams, num_returned, reasons
            )
            if num_beams > 1
            else StepMessages(self._batch_number, self._layout, num_prompts * num_returned, reasons)
        )
        self._prefill_begin_ns = self._last_ns = time.monotonic_ns()
        return WatchedCriteria(criteria, self)

    # ---- its steps ----

    @_guarded
    def note_logits(self, scores: torch.Tensor) -> None:
        """Note the model's scores [R, V] of the next step."""
        self._logits_ns = time.monotonic_ns()
        if not self._prefill_end_ns:
            self._prefill_end_ns = self._logits_ns
        self._meter = None if self._num_lost else StepMeter(scores, self._layout, self._scratch)

    @_guarded
    def note_processed(self, scores: torch.Tensor) -> None:
        """Note the scores [R, V] after the next processor."""
        if self._meter is not None:
            self._meter.note(scores)

    @_guarded
    def note_continuations(self, result: Any, arguments: dict[str, Any]) -> None:
        """Note the continuations that a round of beam search considers."""
        self._continuations = beams.find_continuations(result, arguments)

    @_guarded
    def note_chosen(self, input_ids: torch.Tensor, done: list[torch.Tensor]) -> None:
        """Note the sequences with their new tokens, and the rows that each criterion ends."""
        meter, self._meter = self._meter, None
        if meter is None:
            self._num_lost += 1
            return
        chosen, found = input_ids[:, -1], self._continuations
        rows = None if found is None else found.parents.reshape(-1)
        if found is None and self._can_wait and meter.is_on_host:
            with self._lock:
                self._pending.add(meter, chosen, done, self._make_timing(len(chosen)))
            if self._pending.is_due:
                self._submit_pending()
                # Measuring is no part of the next forward pass.
                self._last_ns = time.monotonic_ns()
            return
        columns = meter.measure(chosen, rows)
        columns += [flags.to(torch.float32).reshape(-1, 1) for flags in done]
        if found is not None and rows is not None:
            columns += beams.list_columns(found, meter.gather_final(chosen, rows))
            self._table = torch.cat(columns, dim=-1)
        else:
            self._submit(HostTable(torch.cat(columns, dim=-1)), None, len(chosen))

    @_guarded
    def note_kept(self, arguments: dict[str, Any]) -> None:
        """Note which continuations of a round have ended: the others go on as beams."""
        hits = arguments["next_token_hits_stopping_criteria"]
        num_beams = arguments["num_beams"]
        found, table = self._continuations, self._table
        self._continuations = self._table = None
        if found is not None and table is not None:
            kept = HostTable(beams.find_kept(found, hits, num_beams).to(torch.float32))
            self._submit(HostTable(table), kept, self._shape[0] * num_beams)

    @_guarded
    def note_outcome(self, result: Any) -> None:
        """Note the finished hypotheses after a round."""
        sequences, scores, beam_indices, _ = result
        self._outcome = beams.Outcome(sequences, scores, beam_indices)

    def _make_timing(self, batch_size: int) -> StepTiming:
        """Return the durations of the step that ends now."""
        ready_ns = time.monotonic_ns()
        timing = StepTiming(
            elapsed_ns=ready_ns - self._start_ns,
            forward_ns=self._logits_ns - self._last_ns,
            select_ns=ready_ns - self._logits_ns,
            batch_size=batch_size,
        )
        self._last_ns = ready_ns
        return timing

    def submit_pending(self) -> None:
        """Measure the steps that wait, and hand them to the recorder; any thread may call.

        They stay where they are if another thread measures for longer than some seconds. It may
        be the same thread: a signal's handler can run while it measures.
        """
        if not self._lock.acquire(timeout=_LONGEST_WAIT_S):
            return
        try:
            self._submit_locked()
        except Exception:  # noqa: BLE001 - whatever fails here, the service goes on
            _log.exception("the record of a generation ends, as its steps cannot be measured")
            self.is_broken = True
        finally:
            self._lock.release()

    def _submit_pending(self) -> None:
        """Measure and submit the steps that wait, in the thread that generates."""
        with self._lock:
            self._submit_locked()

    def _submit_locked(self) -> None:
        tables = self._pending.take()
        if not tables:
            return

        def make() -> Iterator[RecordGenerationsRequest]:
            messages = self._messages
            if isinstance(messages, StepMessages):
                for table, timing in tables:
                    yield from messages.make(table, timing)

        num_bytes = sum(table.nbytes + _MESSAGE_BYTES for table, _ in tables)
        if self._num_lost or not self._destination.recorder.submit(make, num_bytes):
            self._num_lost += len(tables)

    def _submit(self, table: HostTable, kept: HostTable | None, batch_size: int) -> None:
        timing = self._make_timing(batch_size)

        def make() -> Iterator[RecordGenerationsRequest]:
            messages = self._messages
            if isinstance(messages, beams.BeamMessages) and kept is not None:
                yield from messages.make_round(table, kept, timing)
            elif isinstance(messages, StepMessages):
                yield from messages.make(table.read(), timing)

        num_bytes = table.num_bytes + _MESSAGE_BYTES
        if not self._destination.recorder.submit(make, num_bytes):
            self._num_lost += 1

    # ---- its end ----

    def end(self, error: BaseException | None) -> None:
        """End the batch, with the error that `generate` raised if it did."""
        if self._batch_number == 0:
            return
        try:
            self._submit_pending()
        except Exception:  # noqa: BLE001 - whatever fails here, the service goes on
            _log.exception("the record of a generation ends, as its steps cannot be measured")
            self.is_broken = True
        outcome = None
        if not self._num_lost and error is None:
            try:
                outcome = self._read_outcome()
            except Exception:  # noqa: BLE001 - whatever fails here, the service goes on
                _log.exception("the returned sequences of a beam search cannot be read")
                self.is_broken = True
        ended = BatchEnded(
            batch_number=self._batch_number,
            elapsed_ns=time.monotonic_ns() - self._start_ns,
            prefill_begin_ns=max(self._prefill_begin_ns - self._start_ns, 0),
            prefill_end_ns=max(self._prefill_end_ns - self._start_ns, 0),
            num_lost=self._num_lost,
        )
        self._describe_end(ended, error)
        self._destination.recorder.end(
            self._batch_number, lambda: self._make_end(ended, outcome), self._num_lost
        )

    def _describe_end(self, ended: BatchEnded, error: BaseException | None) -> None:
        if self.is_broken:
            ended.finish_reason = FinishReason.FINISH_REASON_FAILED
            ended.failure.CopyFrom(
                Failure(
                    code=_INTERNAL,
                    reason="RECORDER_FAILED",
                    message="a step could not be measured; the service's log has the error",
                )
            )
        elif isinstance(error, Exception):
            ended.finish_reason = FinishReason.FINISH_REASON_FAILED
            ended.failure.CopyFrom(
                Failure(
                    code=_UNKNOWN,
                    reason="GENERATE_RAISED",
                    # Its message may quote content.
                    message=f"generate raised {type(error).__name__}",
                )
            )
        elif error is not None:
            # KeyboardInterrupt, SystemExit
            ended.finish_reason = FinishReason.FINISH_REASON_CANCELLED

    def _read_outcome(self) -> beams.Outcome | None:
        outcome = self._outcome
        return None if outcome is None else beams.Outcome(*(part.cpu() for part in outcome))

    def _make_end(
        self, ended: BatchEnded, outcome: beams.Outcome | None
    ) -> Iterator[RecordGenerationsRequest]:
        messages = self._messages
        if isinstance(messages, beams.BeamMessages):
            if outcome is None:
                yield from messages.release()
            else:
                yield from messages.make_steps(outcome, self._num_prompt_tokens)
                num_returned = self._shape[1]
                ended.scores.extend(outcome.scores[:, :num_returned].flatten().tolist())
        yield RecordGenerationsRequest(ended=ended)


def _list_prompts(input_ids: torch.Tensor, mask: Any) -> list[list[int]]:
    """Return the prompts without padding."""
    prompts: list[list[int]] = input_ids.tolist()
    if mask is None or mask.dim() != 2 or mask.shape[1] != input_ids.shape[1]:
        return prompts
    each = mask.shape[0] // input_ids.shape[0]
    return [
        [token_id for token_id, is_seen in zip(prompt, seen, strict=True) if is_seen]
        for prompt, seen in zip(prompts, mask[::each].tolist(), strict=True)
    ]


def _make_timestamp(time_ns: int) -> Timestamp:
    seconds, nanos = divmod(time_ns, 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
