"""Cost of a training's record: time and bytes of a step, digests, proofs.

The demo model's shape (2.3 million parameters, 2 x 512 tokens a step) is trained on random tokens
by several processes: untracked, tracked with every step's norms, and so on. One of them makes a
step while the others wait, in a random order for each round of steps, so that disturbances of the
machine affect all alike. After some rounds all are started again, because the memory layout of a
process changes its speed by some percent. Each ratio is that of the total times, with the interval
of 95% of the resamplings of the starts (Efron, "Bootstrap Methods", 1979).

python tests/benchmarks/lineage.py [--starts 10]
"""

import argparse
import asyncio
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from whence.v1.training_pb2 import GetInclusionProofResponse
from whence_server.lineage.framing import frame_message, iterate_frames
from whence_server.lineage.merkle import MerkleTree, hash_leaf, hash_node
from whence_server.lineage.reader import RecordReader

NUM_WARM_UP_STEPS = 5
NUM_ROUNDS = 40
"""Rounds of steps after each start."""
NUM_RESAMPLINGS = 2_000
UNTRACKED, EXPORTED = "untracked", "tracked, exported over OTLP"
NUM_DIGESTED_BYTES = 256 << 20
NUM_DOCUMENTS = (79, 100_000)


def run(runs: int = 5) -> None:
    measure(2 * runs)


def measure(num_starts: int) -> None:
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as directory:
        asyncio.run(_measure_trainings(Path(directory), num_starts))
        _measure_digests(Path(directory))
    _measure_proofs()


class StepTime(NamedTuple):
    """Times of a step."""

    seconds: float
    processor_s: float
    others_s: float
    """Processor time of its child processes."""


async def _measure_trainings(directory: Path, num_starts: int) -> None:
    """Compare untracked training with tracking, at several strides of norms and with an export."""
    collector = await _start("collector.py")
    endpoint = json.loads(await _read_line(collector))["endpoint"]
    kinds: dict[str, dict[str, Any]] = {
        UNTRACKED: {},
        "tracked": {"norm_stride": 1},
        "tracked, norms of every tenth step": {"norm_stride": 10},
        "tracked, no norms": {"norm_stride": 0},
        EXPORTED: {"norm_stride": 1, "endpoint": endpoint},
    }
    starts = [await _take_turns(directory / str(n), kinds, n) for n in range(num_starts)]
    collector.terminate()
    await collector.wait()
    mean = statistics.mean(step.seconds for steps in starts for step in steps[UNTRACKED])
    print(
        f"training the demo model's shape, {num_starts} starts and {NUM_ROUNDS} steps after each: "
        f"{mean * 1e3:.1f} ms a step untracked"
    )
    for kind in list(kinds)[1:]:
        pairs = [(steps[kind], steps[UNTRACKED]) for steps in starts]
        wall = _format_ratio(pairs, lambda step: step.seconds)
        processor = _format_ratio(pairs, lambda step: step.processor_s)
        print(f"  {kind}: {wall} of the time, {processor} of the processor time")
    exported = [step for steps in starts for step in steps[EXPORTED]]
    others = statistics.mean(step.others_s for step in exported)
    share = others / statistics.mean(step.processor_s for step in exported)
    # Not part of the ratios, because it also runs in the turns of others.
    print(f"  the export's process, in none of these: {others * 1e3:.1f} ms a step, {share:.1%}")
    sizes = _read_step_sizes(directory / "0" / "1" / "lineage.binpb")
    print(f"  the record: {statistics.median(sizes):.0f} bytes a step")


async def _take_turns(
    directory: Path, kinds: dict[str, dict[str, Any]], seed: int
) -> dict[str, list[StepTime]]:
    """Have all trainings take turns; gives each one's steps. It writes to its number's folder."""
    trainings = {
        kind: await _start(
            "stepwise.py",
            str(directory / str(number)),
            str(NUM_WARM_UP_STEPS + NUM_ROUNDS),
            json.dumps(options),
        )
        for number, (kind, options) in enumerate(kinds.items())
    }
    steps: dict[str, list[StepTime]] = {kind: [] for kind in kinds}
    order = list(kinds)
    shuffle = random.Random(seed).shuffle
    for number in range(NUM_WARM_UP_STEPS + NUM_ROUNDS):
        shuffle(order)
        for kind in order:
            _go_on(trainings[kind])
            step = StepTime(*json.loads(await _read_line(trainings[kind])))
            if number >= NUM_WARM_UP_STEPS:
                steps[kind].append(step)
    for training in trainings.values():
        _go_on(training)
        assert await training.wait() == 0
    return steps


async def _start(script: str, *arguments: str) -> Process:
    command = [sys.executable, str(Path(__file__).parent / script), *arguments]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)


async def _read_line(process: Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise SystemExit(f"a process of the benchmark ended with {await process.wait()}")
    return line


def _go_on(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")


def _format_ratio(
    starts: list[tuple[list[StepTime], list[StepTime]]], what: Callable[[StepTime], float]
) -> str:
    """Format the ratio of the sums, with the interval of 95% of the resamplings of the starts."""
    sums = [(sum(map(what, ours)), sum(map(what, theirs))) for ours, theirs in starts]

    def ratio(chosen: list[tuple[float, float]]) -> float:
        return sum(one for one, _ in chosen) / sum(other for _, other in chosen)

    picks = random.Random(0).choices
    resampled = [ratio(picks(sums, k=len(sums))) for _ in range(NUM_RESAMPLINGS)]
    low, *_, high = statistics.quantiles(resampled, n=40)
    return f"{ratio(sums):.3f} ({low:.3f} to {high:.3f})"


def _read_step_sizes(record: Path) -> list[int]:
    """Return the size of each step's entry on disk in bytes."""
    sizes = [len(frame_message(frame.message)) for frame in iterate_frames(record.read_bytes())]
    events = RecordReader(record).read_all()
    return [
        size
        for size, recorded in zip(sizes, events, strict=True)
        if recorded.event.WhichOneof("event") == "step"
    ]


def _measure_digests(directory: Path) -> None:
    """Compare digests of tensors and files with hashlib alone on the same bytes."""
    import torch

    from whence_server.engines.transformers.digests import (
        digest_files,
        digest_state,
        digest_tensors,
        digest_weights,
    )

    elements = NUM_DIGESTED_BYTES // 4 // 64
    state = {f"layer.{n}.weight": torch.randn(elements) for n in range(64)}
    octets = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    (directory / "weights").write_bytes(octets)
    raw, *ours = _time_fastest(
        lambda: hashlib.sha256(octets).digest(),
        lambda: digest_weights(state),
        lambda: digest_tensors(state),
        lambda: (digest_weights(state), digest_tensors(state)),
        lambda: digest_state(state),
        lambda: digest_files(directory, ["weights"]),
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


def _measure_proofs() -> None:
    """Measure the size of a document's proof, and the time to make and to check it."""
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
            audit_path=tree.compute_audit_path(index),
            root=tree.root,
        )
        assert _compute_root(proof) == tree.root
        made, checked = _time_fastest(
            partial(tree.compute_audit_path, index), partial(_compute_root, proof), rounds=50
        )
        print(
            f"proof that one of {size:,} documents was read: "
            f"{len(proof.SerializeToString())} bytes, made in {made * 1e6:.0f} us, checked in "
            f"{checked * 1e6:.0f} us; the tree takes {built * 1e3:.1f} ms"
        )


def _compute_root(proof: Any) -> bytes:
    """Return the root of a proof by RFC 9162, section 2.1.3.2, with its names."""
    fn, sn, r = proof.leaf_index, proof.tree_size - 1, hash_leaf(proof.leaf_data)
    for p in proof.audit_path:
        if fn % 2 or fn == sn:
            r = hash_node(p, r)
            while fn % 2 == 0 and fn:
                fn, sn = fn // 2, sn // 2
        else:
            r = hash_node(r, p)
        fn, sn = fn // 2, sn // 2
    return r


def _time_fastest(*functions: Callable[[], object], rounds: int = 5) -> list[float]:
    """Return the shortest time of each function in seconds, over several rounds in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for number, function in enumerate(functions):
            started = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - started)
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=10)
    measure(parser.parse_args().starts)
