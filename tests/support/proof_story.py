"""A training, a server and its signed and logged generations, and the files that remain."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from proof_auditor import Auditor, Shown, open_record
from proof_operator import LOG_KEY_NAME, Operator
from server_process import ServerProcess
from whence_command import run_whence_well
from witnessed import run_witness, wait_for_checkpoint

from whence import Client
from whence.proof.notes import NoteSigner, VerifierKey
from whence.proof.verification import LogKeys
from whence.v1.generation_pb2 import GenerationFinished
from whence.v1.verification_pb2 import GenerationRecord
from whence_server.analysis.replay.models import Models
from whence_server.analysis.setup import AnalysisSetup
from whence_server.cli import main as server_main
from whence_server.proof.log.keys import make_key
from whence_server.training.attest.signatures import RECORD_SIGNATURE, open_key
from whence_server.verification import make_options

ORIGIN = "example.com/story"
WORDS = ("the", "a", "one", "of", "model", "text", "reads", "and", "then", "some", "long", "short")
TRAINING = (
    *("--vocab-size", "420", "--block-size", "128", "--batch-size", "4", "--epochs", "4"),
    *("--learning-rate", "0.01", "--scheduler", "constant", "--save-steps", "100"),
    *("--threads", "1", "--config-override", "n_embd=64", "--config-override", "n_layer=2"),
    *("--config-override", "n_head=2"),
)
PROMPT = "the model reads"
HIDDEN = f"one long text of loss and then {PROMPT}"
SETTINGS: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0.9, "ignore_eos": True}


class Story(NamedTuple):
    """Honest generations, and the two people who look at them.

    Attributes:
        model: directory of the trained model.
        files: folder with the files that the auditor has.
        ids: ids of the generations, in their order: the one that is checked, the one with
            `HIDDEN`, and others.
        shown: what the operator shows if it changes nothing.
        operator: the operator.
        auditor: the auditor.
    """

    model: Path
    files: Path
    ids: Sequence[str]
    shown: Shown
    operator: Operator
    auditor: Auditor

    def open(self, number: int) -> GenerationRecord:
        """Return a generation as it is on record."""
        generation_id = self.ids[number]
        return open_record(self.shown.bundles[generation_id], self.shown.ends[generation_id])

    def open_all(self) -> list[GenerationRecord]:
        """Return all generations."""
        return [self.open(number) for number in range(len(self.ids))]


def make_story(root: Path) -> Story:
    """Train, serve, generate and export in an empty folder; then stop the server."""
    files, data_dir, model = root / "files", root / "data", root / "story-model"
    for directory in (files, data_dir, root / "witness", root / "texts"):
        directory.mkdir()
    train(root / "texts", model, root / "trainer.pem")
    shutil.copy(root / "texts" / "00.txt", files / "document.txt")
    shutil.copy(model / RECORD_SIGNATURE, files)
    (files / "trainer.pub").write_text(open_key(root / "trainer.pem").public.pem)
    log_key = NoteSigner(ORIGIN, make_key("--log-key", data_dir / LOG_KEY_NAME)).key
    with run_witness(root / "witness", log_key) as named:
        witness_key = VerifierKey.parse(named.partition("=")[2])
        ids, ends = serve(model, data_dir, files, log_key, named)
    bundles = {it: (files / f"{it}.json").read_bytes() for it in ids}
    auditor = Auditor(
        keys=((files / "server.pub").read_text(),),
        training_keys=((files / "trainer.pub").read_text(),),
        log=LogKeys(str(log_key), [str(witness_key)]),
        training=(files / RECORD_SIGNATURE).read_bytes(),
        document_proof=(files / "proof.json").read_bytes(),
        checkpoint=files / "checkpoint",
        old_bundle=files / f"{ids[1]}.json",
        models=Models(
            AnalysisSetup(make_options(model, files), str(files / "noise.json"), num_threads=1)
        ),
        witness=root / "witness",
    )
    document = (files / "document.txt").read_bytes()
    operator = Operator(data_dir, ORIGIN, document, auditor.run_witness)
    shown = Shown(operator.copy(root / "shown"), bundles, ends, document)
    return Story(model, files, ids, shown, operator, auditor)


def train(texts: Path, model: Path, key: Path) -> None:
    """Train on record, signed by the trainer's key."""
    words = random.Random(3)
    for number in range(12):
        text = " ".join(words.choice(WORDS) for _ in range(60))
        (texts / f"{number:02}.txt").write_text(text)
    signing = ("--signing-key", str(key))
    assert server_main(["train", "--output", str(model), *TRAINING, *signing, str(texts)]) == 0


def serve(
    model: Path, data_dir: Path, files: Path, log_key: VerifierKey, witness: str
) -> tuple[list[str], dict[str, GenerationFinished]]:
    """Serve, generate, and export what an auditor needs; return ids and ends of the generations."""
    flags = ("--log-origin", ORIGIN, "--log-checkpoint-interval", "0.1")
    witnessed = ("--witness", witness, "--witness-quorum", "1")
    with ServerProcess(model, data_dir, *flags, *witnessed) as server:
        target = ("--target", server.target)
        (files / "server.pub").write_text(run_whence_well("keys", "--pem", *target))
        with Client(server.target) as client:
            ids = [
                run(client, PROMPT, seed=7),
                run(client, HIDDEN, seed=7),
                run(client, "a short text", seed=9),
                run(client, "then some", seed=10),
            ]
            ends = {it: client.generations.get(it).finished for it in ids}
        with grpc.insecure_channel(server.target) as channel:
            key = VerifierKey.parse(witness.partition("=")[2])
            note, _ = wait_for_checkpoint(channel, len(ids), log_key, key)
        (files / "checkpoint").write_bytes(note)
        for it in ids:
            file = str(files / f"{it}.json")
            run_whence_well("generations", "export", it, "--bundle", file, *target)
        proof = run_whence_well("training", "proof", "0", "--json", *target)
        (files / "proof.json").write_text(proof)
        assert server.terminate() == 0
    return ids, ends


def run(client: Client, prompt: str, **options: Any) -> str:
    with client.generate(prompt, **SETTINGS, **options) as generation:
        for _ in generation:
            pass
    return generation.id
