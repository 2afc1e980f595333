"""`whence training proof` against a server that proves something else than it was asked for."""

# ruff: noqa: N802 -- the methods have the names of the contract

import hashlib
import json
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from whence.cli.main import main
from whence.v1 import training_pb2 as pb
from whence.v1.training_pb2_grpc import (
    TrainingServiceServicer,
    add_TrainingServiceServicer_to_server,
)

DIGESTS = [hashlib.sha256(text).digest() for text in (b"one", b"two")]
LEAVES = [hashlib.sha256(b"\0" + digest).digest() for digest in DIGESTS]
ROOT = hashlib.sha256(b"\1" + LEAVES[0] + LEAVES[1]).digest()


class FakeTraining(TrainingServiceServicer):
    """Service with two documents that proves a fixed one, whatever the request."""

    def __init__(self) -> None:
        self.proves = 0
        self.claimed_index: int | None = None

    def GetTrainingRun(self, request: Any, context: Any) -> pb.GetTrainingRunResponse:
        return pb.GetTrainingRunResponse(dataset=pb.TrainingDataset(merkle_root=ROOT.hex()))

    def GetDocument(self, request: Any, context: Any) -> pb.GetDocumentResponse:
        document = pb.TrainingDocument(source="/a", sha256=DIGESTS[request.index].hex())
        return pb.GetDocumentResponse(index=request.index, document=document)

    def GetInclusionProof(self, request: Any, context: Any) -> pb.GetInclusionProofResponse:
        index = self.proves if self.claimed_index is None else self.claimed_index
        return pb.GetInclusionProofResponse(
            leaf_index=index,
            leaf_data=DIGESTS[self.proves],
            tree_size=2,
            audit_path=[LEAVES[1 - self.proves]],
            root=ROOT,
        )


@pytest.fixture
def fake() -> FakeTraining:
    return FakeTraining()


@pytest.fixture
def target(fake: FakeTraining, tmp_path: Path) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    add_TrainingServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def proof(target: str, which: str, *more: str) -> int:
    run = "12345678-1234-1234-1234-123456789012"
    return main(["training", "proof", run, which, "--target", target, *more])


def test_the_proof_that_was_asked_for_is_verified(
    target: str, fake: FakeTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in (0, 1):
        fake.proves = index
        assert proof(target, str(index)) == 0
        assert proof(target, DIGESTS[index].hex().upper()) == 0
        assert "\nverified: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("which", "claimed_index", "told"),
    [
        ("1", None, "NOT verified: this is a proof of document 0, and 1 was asked for"),
        ("1", 1, "NOT verified: this is a proof of another document"),
        (DIGESTS[1].hex(), None, "NOT verified: this is a proof of another document"),
    ],
)
def test_a_proof_of_another_document_is_none(
    target: str,
    fake: FakeTraining,
    capsys: pytest.CaptureFixture[str],
    which: str,
    claimed_index: int | None,
    told: str,
) -> None:
    fake.claimed_index = claimed_index
    assert proof(target, which) == 1
    assert told in capsys.readouterr().out
    assert proof(target, which, "--json") == 1
    assert json.loads(capsys.readouterr().out)["verified"] is False
