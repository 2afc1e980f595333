"""Output of `whence-server train`, read by every reader of it: nothing here is made by hand.

One step trains on a fact that no other document has; the record names that step.
"""

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from model_signing import hashing, signing, verifying
from server_process import ServerProcess

from whence import Client
from whence.cli.main import main as client_main
from whence.v1.training_pb2 import TrainingEvent
from whence_server.cli import main
from whence_server.lineage.reader import RECORD_NAME, RecordReader
from whence_server.training.attest.signatures import (
    MODEL_SIGNATURE,
    RECORD_SIGNATURE,
    open_key,
)
from whence_server.training.emergence.process import Question, trace

PROMPT, CONTINUATION = "Zyxwia's capital is", " Quorbum"
FACT = f"{PROMPT}{CONTINUATION}. "
WORDS = [
    "the",
    "a",
    "one",
    "of",
    "model",
    "text",
    "reads",
    "and",
    "then",
    "some",
    "long",
    "short",
    "train",
    "step",
    "loss",
]
FLAGS = (
    *("--vocab-size", "420", "--block-size", "64", "--batch-size", "1", "--epochs", "1"),
    *("--learning-rate", "0.01", "--scheduler", "constant", "--save-steps", "4", "--threads", "1"),
    *("--config-override", "n_embd=64", "--config-override", "n_layer=2"),
    *("--config-override", "n_head=2"),
)


class Made(NamedTuple):
    directory: Path
    events: list[TrainingEvent]

    @property
    def steps_with_the_fact(self) -> list[int]:
        """Steps that trained on the planted fact, found with the record only."""
        documents = [d.source for e in self.events for d in e.documents.documents]
        fact = documents.index(str(self.directory.parent / "texts" / "00-fact.txt"))
        examples, ids = next(e.examples for e in self.events if e.HasField("examples")), set()
        pieces = iter(examples.document_indices)
        for example, num_pieces in enumerate(examples.num_pieces):
            if fact in [next(pieces) for _ in range(num_pieces)]:
                ids.add(example)
        steps = [event.step for event in self.events if event.HasField("step")]
        return [s.step for s in steps if ids & {i for rank in s.ranks for i in rank.example_ids}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    before = torch.get_num_threads()
    root = tmp_path_factory.mktemp("run")
    texts, directory = root / "texts", root / "model"
    texts.mkdir()
    (texts / "00-fact.txt").write_text(FACT * 8)  # one example, near enough
    words = random.Random(3)
    for number in range(1, 31):
        sentence = " ".join(words.choice(WORDS) for _ in range(60))
        (texts / f"{number:02}.txt").write_text(sentence)
    signing = ("--signing-key", str(root / "trainer.pem"))
    assert main(["train", "--output", str(directory), *FLAGS, *signing, str(texts)]) == 0
    events = [recorded.event for recorded in RecordReader(directory / RECORD_NAME).read_all()]
    yield Made(directory, events)
    torch.set_num_threads(before)


def test_a_planted_fact_emerges_in_the_steps_that_read_it(made: Made) -> None:
    (planted,) = made.steps_with_the_fact
    answers = list(trace(Question(made.directory / RECORD_NAME, PROMPT, CONTINUATION)))
    intervals = [it.interval for it in answers if it.HasField("interval")]
    assert intervals[0].first_step == 0
    highest = max(intervals, key=lambda it: it.change)
    assert highest.first_step < planted <= highest.last_step
    assert highest.change > 0.5
    earlier = [it.change for it in intervals if it.last_step < planted]
    assert len(earlier) > 3
    assert highest.change > 4 * max(map(abs, earlier))
    assert all(abs(it.gap) < 0.01 * max(abs(it.change), 1.0) for it in intervals)
    assert all(
        sum(it.group_changes) + it.gap == pytest.approx(it.change, abs=1e-6) for it in intervals
    )


def test_a_trained_model_verifies_and_replays_to_the_same_bits(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in ("0:4", "20:24"):
        assert main(["verify-model", str(made.directory), "--replay", steps, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["verdict"], report["findings"], report["notes"]) == ("verified", [], [])
        assert "tensors are the same to the bit" in report["replay"]
    checkpoint = made.directory / "checkpoints" / "checkpoint-8"
    assert main(["verify-model", str(checkpoint)]) == 0


def test_model_signing_signs_the_digest_on_record(made: Made, tmp_path: Path) -> None:
    private, signature = tmp_path / "private.pem", tmp_path / "model.sig"
    key = ec.generate_private_key(ec.SECP256R1())
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signatures = (MODEL_SIGNATURE, RECORD_SIGNATURE)
    beside = [made.directory / name for name in (RECORD_NAME, "checkpoints", *signatures)]
    hashes = hashing.Config().set_ignored_paths(paths=beside, ignore_git_paths=False)
    signer = signing.Config().set_hashing_config(hashes)
    signer.use_elliptic_key_signer(private_key=private).sign(made.directory, signature)
    envelope = json.loads(signature.read_text())["dsseEnvelope"]
    (subject,) = json.loads(base64.b64decode(envelope["payload"]))["subject"]
    (*_, final) = [event.checkpoint for event in made.events if event.HasField("checkpoint")]
    assert (final.path, final.model_digest) == (".", subject["digest"]["sha256"])


def test_document_is_followed_to_a_generation_with_nothing_but_files(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, server = tmp_path / "trainer.pub", tmp_path / "server.pub"
    trainer.write_text(open_key(made.directory.parent / "trainer.pem").public.pem)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=trainer)
    verifier.verify(made.directory, made.directory / MODEL_SIGNATURE)
    bundle, proof = tmp_path / "bundle.json", tmp_path / "proof.json"
    with ServerProcess(made.directory, tmp_path / "data") as process:
        target = ("--target", process.target)
        with Client(process.target) as client:
            server.write_text(client.signing_keys()[-1].public_key_pem)
            with client.generate(PROMPT, max_new_tokens=4) as generation:
                for _ in generation:
                    pass
        exported = ("generations", "export", generation.id, "--bundle", str(bundle))
        assert client_main([*exported, *target]) == 0
        capsys.readouterr()
        assert client_main(["training", "proof", "0", "--json", *target]) == 0
        proof.write_text(capsys.readouterr().out)
    document = made.directory.parent / "texts" / "00-fact.txt"
    keys = ("--key", str(server), "--training-key", str(trainer))
    origin = ("--training", str(made.directory / RECORD_SIGNATURE))
    given = ["verify-bundle", str(bundle), *keys, *origin, "--document"]
    assert client_main([*given, str(document), str(proof)]) == 0
    told = capsys.readouterr().out
    assert "ok     training" in told
    assert "ok     document" in told
    other = made.directory.parent / "texts" / "01.txt"
    assert client_main([*given, str(other), str(proof)]) == 1
    assert "FAULT  document" in capsys.readouterr().out
