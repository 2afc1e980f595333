"""A witness in its own process, and checkpoints that it has cosigned."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from whence.proof.checkpoints import VerifiedCheckpoint, verify_checkpoint
from whence.proof.notes import VerifierKey
from whence.v1 import transparency_log_pb2
from whence.v1.transparency_log_pb2_grpc import TransparencyLogServiceStub

WAIT_S = 60.0
WITNESS = "example.com/w"
KEY_NAME, MEMORY_NAME = "w.pem", "w.db"
"""Names of the witness's files in its folder."""


@contextmanager
def run_witness(folder: Path, log_key: VerifierKey) -> Iterator[str]:
    """Run `whence-server witness`; yield its URL and key."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "whence_server", "witness", "--name", WITNESS),
            *("--log", str(log_key), "--key", str(folder / KEY_NAME)),
            *("--db", str(folder / MEMORY_NAME)),
            *("--listen", "127.0.0.1:0", "--max-rate", "1000"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
        assert process.wait(60) == 0


def wait_for_checkpoint(
    channel: grpc.Channel, size: int, log_key: VerifierKey, witness: VerifierKey
) -> tuple[bytes, VerifiedCheckpoint]:
    """Return the first published checkpoint of at least this size, verified."""
    stub, deadline = TransparencyLogServiceStub(channel), time.monotonic() + WAIT_S
    while True:
        try:
            answer = stub.GetCheckpoint(transparency_log_pb2.GetCheckpointRequest())
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        else:
            assert answer.verifier_key == str(log_key)
            found = verify_checkpoint(answer.checkpoint, log_key, [witness], 1)
            if found.checkpoint.size >= size:
                return answer.checkpoint, found
        assert time.monotonic() < deadline, f"no checkpoint with {size} entries"
        time.sleep(0.05)
