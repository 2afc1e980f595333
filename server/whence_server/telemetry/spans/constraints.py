"""Attributes of a generation's constraint; its text is content, and on no span."""

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names


def make_constraint_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    """Return what is known of the constraint at the start; nothing without one."""
    if not started.effective_decoding.HasField("constraint"):
        return {}
    return {
        names.CONSTRAINT_LANGUAGE: started.effective_decoding.constraint.WhichOneof("language"),
        names.CONSTRAINT_ENGINE: started.constraint_engine or None,
    }


def judge_constraint(
    started: GenerationStarted, finished: GenerationFinished
) -> dict[str, AttributeValue | None]:
    """Return the number of sequences that are cut off; nothing without a constraint."""
    if not started.effective_decoding.HasField("constraint"):
        return {}
    num_incomplete = sum(
        result.HasField("constraint_complete") and not result.constraint_complete
        for result in finished.sequences
    )
    return {names.CONSTRAINT_NUM_INCOMPLETE: num_incomplete}
