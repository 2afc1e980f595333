"""`beam_round` spans: one for each round of beam search that has a recorded time."""

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.summary import shorten_float32, summarise_beam_round
from whence.v1.generation_pb2 import BeamRound
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.children import make_child_span
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import compute_step_interval


def make_beam_round_span(
    origin: Origin, beam_round: BeamRound, *, summary: bool = True
) -> Span | None:
    """Make the span of a round's forward pass and choice; None if the round has no time.

    The first round has no forward pass of its own: its logits come from the prompt's, as for
    a sequence's first step.

    Args:
        origin: the generation's place in its trace.
        beam_round: the round.
        summary: put the round's summary on the span.
    """
    if not beam_round.HasField("timing"):
        return None
    timing = beam_round.timing
    kept = [one for one in beam_round.continuations if one.kept]
    finished = [one for one in beam_round.continuations if one.finished]
    best_score = max((one.score for one in kept), default=None)
    attributes: dict[str, AttributeValue | None] = {
        names.STEP_SUMMARY: summarise_beam_round(beam_round, origin.names) if summary else None,
        names.BEAM_ROUND_INDEX: beam_round.index,
        names.BEAM_ROUND_NUM_CONTINUATIONS: len(beam_round.continuations),
        names.BEAM_ROUND_NUM_PARENTS: len({one.parent for one in (*kept, *finished)}),
        names.BEAM_ROUND_NUM_KEPT: len(kept),
        names.BEAM_ROUND_NUM_FINISHED: len(finished),
        names.BEAM_ROUND_BEST_SCORE: None if best_score is None else shorten_float32(best_score),
        names.STEP_BATCH_SIZE: timing.batch_size,
        names.STEP_CONTEXT_LENGTH: timing.context_length,
        names.STEP_FORWARD_NS: timing.forward_ns,
        names.STEP_SELECT_NS: timing.select_ns,
    }
    return make_child_span(
        origin,
        names.BEAM_ROUND,
        origin.ids.get_beam_round_id(beam_round.index),
        attributes,
        times=compute_step_interval(origin.start_time_ns, beam_round.index, timing),
    )
