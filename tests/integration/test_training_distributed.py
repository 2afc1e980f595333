"""Distributed training in two processes: bitwise results, and the examples of each rank.

So they do where both were stopped after a checkpoint, and go on from it.
"""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from tiny_training import steps_in

from whence.v1.training_pb2 import TrainingState
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.steps import StepRange

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
# Trains once with and once without a record, and writes what each process saw. Then trains once
# more, stops between two checkpoints, and goes on.
SCRIPT = """
import gc, json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from tiny_training import Rows, RowStream, SeenRows, Stop, same_bits, trainer_of, weights_of
from whence_server.training import record

def both(where, kind, dataset, arguments):
    common = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", **arguments}
    untracked = trainer_of(where / f"untracked-{kind}", dataset, **common)
    untracked.train()
    tracked = trainer_of(where / kind, dataset, **common)
    record(tracked)
    seen = SeenRows(tracked.model)
    tracked.train()
    result = {
        "passes": seen.passes,
        "same": same_bits(weights_of(untracked), weights_of(tracked)),
        "losses": [entry["loss"] for entry in tracked.state.log_history if "loss" in entry],
    }
    (where / f"{kind}-{dist.get_rank()}.json").write_text(json.dumps(result))

def resumed(where, kind, dataset, arguments):
    common = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", **arguments}
    whole = trainer_of(where / f"whole-{kind}", dataset, **common)
    whole.train()
    stopped = trainer_of(where / kind, dataset, callbacks=[Stop(5, KeyboardInterrupt())], **common)
    record(stopped)
    try:
        stopped.train()
    except KeyboardInterrupt:
        pass
    going_on = trainer_of(where / kind, dataset, **common)
    record(going_on)
    seen = SeenRows(going_on.model)
    going_on.train(resume_from_checkpoint=True)
    result = {
        "passes": seen.passes,
        "same": same_bits(weights_of(whole), weights_of(going_on)),
        "differs": not same_bits(weights_of(whole), weights_of(stopped)),
    }
    (where / f"{kind}-{dist.get_rank()}.json").write_text(json.dumps(result))

torch.set_num_threads(1)
where = Path(sys.argv[1])
both(where, "rows", Rows(21), {"gradient_accumulation_steps": 2, "save_strategy": "epoch"})
both(where, "stream", RowStream(13), {"max_steps": 3})
every_other = {"save_strategy": "steps", "save_steps": 3}
accumulating = {"gradient_accumulation_steps": 2, "num_train_epochs": 3}
resumed(where, "resumed-rows", Rows(21), {**every_other, **accumulating})
resumed(where, "resumed-stream", RowStream(26), {**every_other, "max_steps": 8})
# A distributed model keeps its process group's threads alive, and a thread of gloo's that lets go
# of its last tensor while the interpreter ends aborts the process: the models go first.
gc.collect()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two-processes")
    script = directory / "train.py"
    script.write_text(SCRIPT)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(script), str(directory)),
    ]
    environment = {
        "PYTHONPATH": str(ROOT / "tests" / "support"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin:/bin",
        "HOME": str(directory),
    }
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return directory


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_ids_of_two_processes_are_recorded_with_an_uneven_tail(directory: Path, kind: str) -> None:
    results = [json.loads((directory / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
    assert [result["same"] for result in results] == [True, True]
    steps = steps_in(directory / kind)
    # Of 21 rows an epoch: five steps of 2 x 2 x 2, less in the last one.
    assert len(steps) == {"rows": 6, "stream": 3}[kind]
    for rank, result in enumerate(results):
        passes = iter(result["passes"])
        for step in steps:
            part = step.ranks[rank]
            assert part.rank == rank
            read = [next(passes) for _ in range(part.num_micro_batches)]
            assert list(part.example_ids) == list(chain(*read))
        assert next(passes, None) is None
    for step, loss in zip(steps, results[0]["losses"], strict=True):
        assert step.loss == pytest.approx(loss, abs=1e-6)
        assert step.num_tokens == 8 * sum(len(rank.example_ids) for rank in step.ranks)


def test_a_checkpoint_has_every_process_random_state(directory: Path) -> None:
    from tiny_training import events_in

    events = events_in(directory / "rows")
    checkpoint = next(e.checkpoint for e in events if e.WhichOneof("event") == "checkpoint")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.path for file in checkpoint.files}


@pytest.mark.parametrize(("kind", "num_steps"), [("resumed-rows", 9), ("resumed-stream", 8)])
def test_two_resumed_processes_reach_the_weights_of_an_uninterrupted_run(
    directory: Path, kind: str, num_steps: int
) -> None:
    results = [json.loads((directory / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
    assert [result["differs"] for result in results] == [True, True]
    assert [result["same"] for result in results] == [True, True]
    run = TrainingRun.open(directory / kind / RECORD_NAME)
    assert run is not None
    assert [(a.attempt, a.resumed_step, a.num_processes) for a in run.attempts] == [
        (1, 0, 2),
        (2, 3, 2),
    ]
    assert [ending.state for ending in run.endings] == [
        TrainingState.TRAINING_STATE_INTERRUPTED,
        TrainingState.TRAINING_STATE_COMPLETED,
    ]
    # Steps 4 and 5 were made, discarded, and made again.
    refs = list(run.steps.select(StepRange(include_superseded=True)))
    assert [(ref.number, ref.attempt) for ref in refs if ref.number in {3, 4, 5, 6}] == [
        (3, 1), (4, 1), (4, 2), (5, 1), (5, 2), (6, 2),
    ]  # fmt: skip
    assert (len(run.steps), run.steps.num_superseded) == (num_steps, 2)
    steps = steps_in(directory / kind)
    first, again = steps[3:5], steps[5:]
    assert [step.step for step in again] == list(range(4, num_steps + 1))
    for before, now in zip(first, again, strict=False):
        assert (before.ranks, before.loss) == (now.ranks, now.loss)
        assert before.num_tokens_seen == now.num_tokens_seen
    for rank, result in enumerate(results):
        passes = iter(result["passes"])
        for step in again:
            part = step.ranks[rank]
            read = [next(passes) for _ in range(part.num_micro_batches)]
            assert list(part.example_ids) == list(chain(*read))
        assert next(passes, None) is None
