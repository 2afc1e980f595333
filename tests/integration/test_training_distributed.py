"""Two processes train together: the same bits as without a record, and what each of them read."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from tiny_training import steps_in

ROOT = Path(__file__).parents[2]
# Trains once with and once without a record, and writes what each process saw.
SCRIPT = """
import gc, json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from tiny_training import Rows, RowStream, SeenRows, same_bits, trainer_of, weights_of
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

torch.set_num_threads(1)
where = Path(sys.argv[1])
both(where, "rows", Rows(21), {"gradient_accumulation_steps": 2, "save_strategy": "epoch"})
both(where, "stream", RowStream(13), {"max_steps": 3})
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
        "PYTHONPATH": str(ROOT / "tests"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin:/bin",
        "HOME": str(directory),
    }
    run = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return directory


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_two_processes_with_an_uneven_tail(directory: Path, kind: str) -> None:
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
