"""What a training's record costs: time and bytes a step, digests, proofs.

Trains the demo model's shape (2.3 million parameters, 2 x 512 tokens a step) on random tokens, in
a process of its own: untracked, tracked with every step's norms, and so on, in turns. A run's
figures are the median time of its steps and the processor time of all of them, which other
processes disturb less; a ratio is the median over the turns.

python tests/benchmarks/lineage.py [--turns 5] [--steps 40] [--threads N]
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from whence.v1.training_pb2 import GetInclusionProofResponse
from whence_server.lineage.framing import framed, frames
from whence_server.lineage.merkle import MerkleTree, leaf_hash, node_hash
from whence_server.lineage.reader import RecordReader

NUM_WARM_UP_STEPS = 5
BATCH_SIZE = 2
NUM_DIGESTED_BYTES = 256 << 20
NUM_DOCUMENTS = (79, 100_000)


def run(turns: int = 5, steps: int = 40) -> None:
    """Measures in a process of its own."""
    # Read once, when torch is loaded; the demo's training has it, too.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--turns", str(turns), "--steps", str(steps)]
    subprocess.run(command, env=environment, check=True)


def measure(turns: int, steps: int) -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as directory:
        asyncio.run(_trainings(Path(directory), turns, steps))
        _digests(Path(directory))
    _merkle_proofs()


async def _trainings(directory: Path, turns: int, steps: int) -> None:
    """Untracked against tracked, with norms every step, every tenth, never, and with an export."""
    collector = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "collector.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert collector.stdout is not None
    endpoint = json.loads(await collector.stdout.readline())["endpoint"]
    kinds: dict[str, dict[str, Any] | None] = {
        "untracked": None,
        "tracked": {"norm_stride": 1},
        "tracked, norms of every tenth step": {"norm_stride": 10},
        "tracked, no norms": {"norm_stride": 0},
        "tracked, exported over OTLP": {"norm_stride": 1, "endpoint": endpoint},
    }
    times: dict[str, list[_StepTime]] = {kind: [] for kind in kinds}
    sizes = []
    for turn in range(turns):
        for number, (kind, options) in enumerate(kinds.items()):
            where = directory / f"run-{turn}-{number}"
            times[kind].append(_train(where, steps, options))
            if options == {"norm_stride": 1}:
                sizes.append(_bytes_a_step(where))
    collector.terminate()
    await collector.wait()
    untracked = times["untracked"]
    usual = statistics.median(time.seconds for time in untracked)
    print(
        f"training the demo model's shape, {turns} turns of {steps} steps: {usual * 1e3:.1f} ms a "
        "step untracked"
    )
    for kind, measured in times.items():
        if kind != "untracked":
            pairs = list(zip(measured, untracked, strict=True))
            ratios = sorted(a.seconds / b.seconds for a, b in pairs)
            of_processor = statistics.median(a.processor_s / b.processor_s for a, b in pairs)
            print(
                f"  {kind}: {statistics.median(ratios):.3f} of it (from {ratios[0]:.3f} to "
                f"{ratios[-1]:.3f}); {of_processor:.3f} of the processor time"
            )
    print(f"  the record: {statistics.median(sizes):.0f} bytes a step")


class _StepTime(NamedTuple):
    """What a step of a run took."""

    seconds: float
    processor_s: float


def _train(where: Path, num_steps: int, options: dict[str, Any] | None) -> _StepTime:
    """Trains once; the first steps are left out."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from whence_server.training import record, telemetry

    ended: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ended.append((time.perf_counter(), time.process_time()))

    trainer = Trainer(
        model=_model(),
        args=TrainingArguments(
            output_dir=str(where),
            max_steps=num_steps,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=1e-3,
            save_strategy="no",
            logging_steps=20,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=_blocks(BATCH_SIZE * num_steps),
    )
    if options is not None:
        record(trainer, norm_stride=options["norm_stride"])
    # After the recorder's, whose time counts.
    trainer.add_callback(Clock())
    endpoint = (options or {}).get("endpoint")
    if endpoint:
        os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = endpoint
    try:
        trainer.train()
        if endpoint:
            export = telemetry.start(where / "lineage.binpb")
            assert export is not None
            assert export.close()
    finally:
        os.environ.pop("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None)
    counted = ended[NUM_WARM_UP_STEPS:]
    return _StepTime(
        statistics.median(b - a for (a, _), (b, _) in pairwise(counted)),
        (counted[-1][1] - counted[0][1]) / (len(counted) - 1),
    )


def _model() -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from whence_server.demo.recipe import SETTINGS
    from whence_server.training.models import SMALL_GPT2

    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SETTINGS["vocab_size"],
            n_positions=SETTINGS["block_size"],
            loss_type="ForCausalLM",
            bos_token_id=0,
            eos_token_id=0,
            **SMALL_GPT2,
        )
    )


def _blocks(num_blocks: int) -> list[dict[str, Any]]:
    import torch

    from whence_server.demo.recipe import SETTINGS

    generator = torch.Generator().manual_seed(0)
    size = (num_blocks, SETTINGS["block_size"])
    ids = torch.randint(SETTINGS["vocab_size"], size, generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def _bytes_a_step(directory: Path) -> float:
    octets = (directory / "lineage.binpb").read_bytes()
    sizes = [len(framed(frame.message)) for frame in frames(octets)]
    events = RecordReader(directory / "lineage.binpb").read_all()
    return statistics.median(
        size
        for size, recorded in zip(sizes, events, strict=True)
        if recorded.event.WhichOneof("event") == "step"
    )


def _digests(directory: Path) -> None:
    """Digests of tensors and files against hashlib alone on the same bytes."""
    import torch

    from whence_server.engine.digests import (
        file_digests,
        state_digests,
        tensor_digests,
        weights_digest,
    )

    elements = NUM_DIGESTED_BYTES // 4 // 64
    state = {f"layer.{n}.weight": torch.randn(elements) for n in range(64)}
    octets = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    (directory / "weights").write_bytes(octets)
    raw, *ours = _fastest(
        lambda: hashlib.sha256(octets).digest(),
        lambda: weights_digest(state),
        lambda: tensor_digests(state),
        lambda: (weights_digest(state), tensor_digests(state)),
        lambda: state_digests(state),
        lambda: file_digests(directory, ["weights"]),
    )
    speed = len(octets) / raw / 1e9
    print(f"SHA-256 over {NUM_DIGESTED_BYTES >> 20} MiB, hashlib alone: {speed:.2f} GB/s")
    names = (
        "weights digest",
        "a digest for each tensor",
        "both, one by one",
        "both in one pass",
        "a file",
    )
    for name, seconds in zip(names, ours, strict=True):
        print(f"  {name}: {raw / seconds:.2f} of its speed")


def _merkle_proofs() -> None:
    """How large a document's proof is, and how long it takes to make and to check."""
    for size in NUM_DOCUMENTS:
        leaves = [hashlib.sha256(str(n).encode()).digest() for n in range(size)]
        started = time.perf_counter()
        tree = MerkleTree(leaves)
        built = time.perf_counter() - started
        index = size // 2
        proof = GetInclusionProofResponse(
            leaf_index=index,
            tree_size=size,
            leaf_data=leaves[index],
            audit_path=tree.audit_path(index),
            root=tree.root,
        )
        assert _root_of(proof) == tree.root
        made, checked = _fastest(
            partial(tree.audit_path, index), partial(_root_of, proof), rounds=50
        )
        print(
            f"proof that one of {size:,} documents was read: "
            f"{len(proof.SerializeToString())} bytes, made in {made * 1e6:.0f} us, checked in "
            f"{checked * 1e6:.0f} us; the tree takes {built * 1e3:.1f} ms"
        )


def _root_of(proof: Any) -> bytes:
    """RFC 9162, section 2.1.3.2, with the names that it has there."""
    fn, sn, r = proof.leaf_index, proof.tree_size - 1, leaf_hash(proof.leaf_data)
    for p in proof.audit_path:
        if fn % 2 or fn == sn:
            r = node_hash(p, r)
            while fn % 2 == 0 and fn:
                fn, sn = fn // 2, sn // 2
        else:
            r = node_hash(r, p)
        fn, sn = fn // 2, sn // 2
    return r


def _fastest(*functions: Callable[[], object], rounds: int = 5) -> list[float]:
    """Of several rounds in turns, the shortest seconds of each."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for number, function in enumerate(functions):
            started = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - started)
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, help="of torch; its own choice by default")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    measure(options.turns, options.steps)
