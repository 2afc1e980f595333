"""Records of invented training runs, for tests of code that reads records."""

from collections.abc import Iterable
from pathlib import Path

from whence.v1 import training_pb2 as pb
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter

RUN = "0a8f3c6e-5a51-4c1e-9d1c-5d3f8a1f2b4c"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
START_NS = 1_800_000_000_000_000_000
STEP_NS = 20_000_000


def started(num_planned_steps: int = 8) -> pb.TrainingEvent:
    event = pb.TrainingEvent()
    run = event.started
    run.training_run_id, run.name = RUN, "tiny"
    run.trace_id, run.span_id = TRACE_ID, SPAN_ID
    run.start_time.FromNanoseconds(START_NS)
    run.architecture, run.num_parameters = "GPT2LMHeadModel", 1000
    run.num_planned_steps = num_planned_steps
    run.groups.add(name="embedding", num_parameters=600)
    run.groups.add(name="head", num_parameters=400)
    return event


def dataset() -> pb.TrainingEvent:
    return pb.TrainingEvent(
        dataset=pb.TrainingDataset(
            kind="documents", num_documents=3, num_examples=16, merkle_root="ab" * 32
        )
    )


def attempt(number: int = 1, resumed_step: int = 0, offset_ns: int = 0) -> pb.TrainingEvent:
    event = pb.TrainingEvent(
        attempt_started=pb.AttemptStarted(
            attempt=number, resumed_step=resumed_step, num_processes=1
        )
    )
    event.attempt_started.start_time.FromNanoseconds(START_NS + 1_000_000 + offset_ns)
    return event


def step(number: int, attempt_number: int = 1, steps_an_epoch: int = 4) -> pb.TrainingEvent:
    return pb.TrainingEvent(
        step=pb.TrainingStep(
            step=number,
            attempt=attempt_number,
            epoch=number / steps_an_epoch,
            ranks=[pb.RankExamples(rank=0, example_ids=[2 * number, 2 * number + 1])],
            num_tokens=32,
            num_tokens_seen=32 * number,
            loss=4.0 / number,
            learning_rate=1e-3,
            grad_norm=1.5,
            update_norms=[0.25, 0.5],
            weight_norms=[2.0, 3.0],
            elapsed_ns=number * STEP_NS,
            duration_ns=STEP_NS,
        )
    )


def evaluation(number: int, attempt_number: int = 1) -> pb.TrainingEvent:
    return pb.TrainingEvent(
        evaluation=pb.Evaluation(
            step=number,
            attempt=attempt_number,
            metrics={"eval_loss": 2.5, "eval_runtime": float("nan")},
            elapsed_ns=number * STEP_NS + 3_000_000,
        )
    )


def checkpoint(number: int, attempt_number: int = 1) -> pb.TrainingEvent:
    return pb.TrainingEvent(
        checkpoint=pb.Checkpoint(
            step=number,
            attempt=attempt_number,
            path=f"checkpoints/checkpoint-{number}",
            resumable=True,
            model_digest="cd" * 32,
            weights_digest="ef" * 32,
            elapsed_ns=number * STEP_NS + 6_000_000,
        )
    )


def finished(
    number: int, attempt_number: int = 1, state: str = "COMPLETED", error: str = ""
) -> pb.TrainingEvent:
    event = pb.TrainingEvent(
        attempt_finished=pb.AttemptFinished(
            attempt=attempt_number,
            step=number,
            state=pb.TrainingState.Value(f"TRAINING_STATE_{state}"),
            error=error,
            weights_digest="ef" * 32,
        )
    )
    event.attempt_finished.end_time.FromNanoseconds(START_NS + (number + 2) * STEP_NS)
    return event


def whole_run() -> list[pb.TrainingEvent]:
    """Return a run of two epochs of four steps, each with an evaluation and a checkpoint."""
    events = [started(), dataset(), attempt()]
    for number in range(1, 9):
        events.append(step(number))
        if number % 4 == 0:
            events += [evaluation(number), checkpoint(number)]
    return [*events, finished(8)]


def write(directory: Path, events: Iterable[pb.TrainingEvent]) -> Path:
    """Write a record of events to a directory."""
    first, *rest = events
    writer = RecordWriter.create(directory / RECORD_NAME, first)
    for event in rest:
        writer.append(event)
    writer.close()
    return directory / RECORD_NAME
