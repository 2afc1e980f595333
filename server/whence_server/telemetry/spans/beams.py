"""One `beam_round` span for each round of beam search that says when it was."""

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.generation_pb2 import BeamRound
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.children import child_span
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import step_interval


def beam_round_span(origin: Origin, beam_round: BeamRound) -> Span | None:
    """Make a round's span: its forward pass and its choice; None where it has no time.

    As with steps, the forward pass behind the first round is the prompt's own.
    """
    if not beam_round.HasField("timing"):
        return None
    timing = beam_round.timing
    kept = [one for one in beam_round.continuations if one.kept]
    finished = [one for one in beam_round.continuations if one.finished]
    attributes: dict[str, AttributeValue | None] = {
        names.BEAM_ROUND_INDEX: beam_round.index,
        names.BEAM_ROUND_NUM_CONTINUATIONS: len(beam_round.continuations),
        names.BEAM_ROUND_NUM_PARENTS: len({one.parent for one in (*kept, *finished)}),
        names.BEAM_ROUND_NUM_KEPT: len(kept),
        names.BEAM_ROUND_NUM_FINISHED: len(finished),
        names.BEAM_ROUND_BEST_SCORE: max((one.score for one in kept), default=None),
        names.STEP_BATCH_SIZE: timing.batch_size,
        names.STEP_CONTEXT_LENGTH: timing.context_length,
        names.STEP_FORWARD_NS: timing.forward_ns,
        names.STEP_SELECT_NS: timing.select_ns,
    }
    return child_span(
        origin,
        names.BEAM_ROUND,
        origin.ids.beam_round(beam_round.index),
        attributes,
        times=step_interval(origin.start_time_ns, beam_round.index, timing),
    )
