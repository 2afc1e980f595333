"""Cost of a signed statement: a leaf for each entry, and the end of a generation.

python tests/benchmarks/signing.py
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from bundles import GENERATION_ID, make_bundle, make_finished, make_started

from whence.proof.verification import verify_bundle
from whence_server.domain.entries import EntryKind
from whence_server.proof.signer import PrivateKey
from whence_server.proof.statements import Leaves, Statements

NUM_STEPS, STEP_BYTES, ROUNDS = 128, 300, 300
LONG_PROMPT, LONG_ROUNDS = 32_768, 30


def main() -> None:
    """Print medians in microseconds of processor time."""
    signer = PrivateKey.generate()
    statements = Statements(lambda: signer)
    started = make_started().SerializeToString()
    finished, step = make_finished(NUM_STEPS).SerializeToString(), bytes(STEP_BYTES)
    start_us, leaves_us, statement_us, signature_us = [], [], [], []
    for _ in range(ROUNDS):
        leaves = statements.begin(GENERATION_ID)
        start_us.append(measure_us(partial(leaves.add, EntryKind.STARTED, started)))
        leaves_us.append(measure_us(partial(add_steps, leaves, step)) / NUM_STEPS)
        statement_us.append(measure_us(partial(leaves.sign, finished)))
        signature_us.append(measure_us(partial(signer.sign, "application/x", finished)))
    long_us = measure_long_us(statements)
    data, key = make_bundle(signer, num_steps=NUM_STEPS), signer.public.pem
    verify_us = [measure_us(lambda: verify_bundle(data, [key])) for _ in range(ROUNDS)]
    for name, found in (
        ("the start", start_us),
        ("a leaf", leaves_us),
        ("the statement at the end, with its signature", statement_us),
        (f"the statement after a prompt of {LONG_PROMPT:,} ids", long_us),
        ("the signature alone", signature_us),
        (f"verification of a bundle of {NUM_STEPS} tokens", verify_us),
    ):
        print(f"{statistics.median(found):10.1f} us  {name}")


def measure_long_us(statements: Statements) -> list[float]:
    """Return the times of statements about generations with a long prompt."""
    started = make_started()
    started.prompt_token_ids[:] = range(LONG_PROMPT)
    start, step = started.SerializeToString(), bytes(STEP_BYTES)
    finished = make_finished(NUM_STEPS).SerializeToString()
    found = []
    for _ in range(LONG_ROUNDS):
        leaves = statements.begin(GENERATION_ID)
        leaves.add(EntryKind.STARTED, start)
        add_steps(leaves, step)
        found.append(measure_us(partial(leaves.sign, finished)))
    return found


def add_steps(leaves: Leaves, step: bytes) -> None:
    """Add the leaves of a generation's steps."""
    for _ in range(NUM_STEPS):
        leaves.add(EntryKind.STEP, step)


def measure_us(work: Callable[[], object]) -> float:
    """Return the processor time of a function, in microseconds."""
    begin_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - begin_ns) / 1_000


if __name__ == "__main__":
    main()
