"""Signatures of trained models, and documents about them, judged by their formats' own tools."""

import base64
import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bundles import make_entries, make_finished, make_started, sign, spell
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from model_signing import verifying
from tiny_models import CORPUS
from training_runs import trained

from whence.proof.envelope import STATEMENT_TYPE, parse_envelope
from whence.proof.public_key import PublicKey
from whence.proof.verification import Origin, verify_bundle
from whence_server.cli import main
from whence_server.lineage.merkle import MerkleTree
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.whole import read_run
from whence_server.proof.signer import PrivateKey
from whence_server.training.attest import trained as trained_model
from whence_server.training.attest.signatures import MODEL_SIGNATURE, RECORD_SIGNATURE, open_key
from whence_server.training.train.resuming import clear_beyond
from whence_server.training.verify.verify import verify


@pytest.fixture(scope="module")
def attested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a signed model in `model`, its key, its public key and its documents."""
    directory = tmp_path_factory.mktemp("attested")
    trained(directory / "model")
    key, model = directory / "key.pem", str(directory / "model")
    documents = ("--slsa", str(directory / "slsa"), "--ml-bom", str(directory / "bom"))
    assert main(["attest", model, "--signing-key", str(key), *documents]) == 0
    (directory / "public.pem").write_text(open_key(key).public.pem)
    return directory


def copy_model(attested: Path, directory: Path) -> Path:
    return Path(shutil.copytree(attested / "model", directory / "model"))


def verify_signature(model: Path, public: Path) -> None:
    """Check a model by OpenSSF model signing, without a setting of ours."""
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(model, model / MODEL_SIGNATURE)


def test_model_signing_verifies_the_model_as_it_lies_there(attested: Path) -> None:
    verify_signature(attested / "model", attested / "public.pem")
    assert verify(attested / "model").findings == []


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_model_signing_refuses_a_changed_model(attested: Path, tmp_path: Path, change: str) -> None:
    model = copy_model(attested, tmp_path)
    if change == "changed":
        (model / "config.json").write_text("{}")
    elif change == "added":
        (model / "more.safetensors").write_bytes(b"")
    else:
        (model / "config.json").unlink()
    with pytest.raises(ValueError, match="Signature mismatch"):
        verify_signature(model, attested / "public.pem")


def test_model_signing_refuses_another_key(attested: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_text(PrivateKey.generate().public.pem)
    with pytest.raises(ValueError, match=r"[Kk]ey"):
        verify_signature(attested / "model", tmp_path / "other.pem")


def test_head_of_the_record_is_signed(attested: Path) -> None:
    envelope = parse_envelope(
        (attested / "model" / RECORD_SIGNATURE).read_bytes(), STATEMENT_TYPE, "it"
    )
    assert PublicKey((attested / "public.pem").read_text()).has_signed(envelope)
    run = read_run(attested / "model" / RECORD_NAME)
    said = json.loads(envelope.payload)
    assert said["subject"] == [{"name": f"training:{run.id}", "digest": {"sha256": run.head}}]
    assert said["predicate"]["modelDigest"] == verify(attested / "model").model_digest
    assert said["predicate"]["documentsRoot"] == _read_root(run)


def _read_root(run: Any) -> str:
    return "" if run.training_set.dataset is None else run.training_set.dataset.merkle_root


def test_changed_model_is_not_signed(
    attested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy_model(attested, tmp_path)
    (model / "config.json").write_text("{}")
    assert main(["attest", str(model), "--signing-key", str(attested / "key.pem")]) == 1
    assert "differs from the record" in capsys.readouterr().err


def test_directory_without_a_record_is_not_signed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attest", str(tmp_path), "--slsa", str(tmp_path / "slsa")]) == 1
    assert "lineage.binpb" in capsys.readouterr().err


def test_command_without_anything_to_do_is_refused(
    attested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attest", str(attested / "model")]) == 2
    assert "--signing-key, --slsa or --ml-bom" in capsys.readouterr().err


def test_record_that_is_being_written_is_not_signed(
    attested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy_model(attested, tmp_path)
    before = (model / RECORD_SIGNATURE).read_bytes()
    with (model / RECORD_NAME).open("rb") as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        assert main(["attest", str(model), "--signing-key", str(attested / "key.pem")]) == 1
    assert "is being written" in capsys.readouterr().err
    assert (model / RECORD_SIGNATURE).read_bytes() == before


def test_documents_of_another_root_are_not_signed(
    attested: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = type("Tree", (MerkleTree,), {"root": property(lambda _: bytes(32))})
    monkeypatch.setattr("whence_server.lineage.training_set.MerkleTree", tree)
    key = str(attested / "key.pem")
    assert main(["attest", str(attested / "model"), "--signing-key", key]) == 1
    assert "Merkle root" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--slsa", "--ml-bom"])
def test_settings_that_are_no_json_are_named(
    attested: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
) -> None:
    read = trained_model.read_trained

    def read_damaged(directory: Path) -> trained_model.TrainedModel:
        found = read(directory)
        found.run.started.recipe_json = "{"
        return found

    monkeypatch.setattr(trained_model, "read_trained", read_damaged)
    assert main(["attest", str(attested / "model"), flag, str(tmp_path / "file")]) == 1
    assert "no JSON" in capsys.readouterr().err


def test_training_that_goes_on_leaves_no_signature_of_the_model_before(
    attested: Path, tmp_path: Path
) -> None:
    model = copy_model(attested, tmp_path)
    clear_beyond(model, None, None)
    assert not (model / MODEL_SIGNATURE).exists()
    assert not (model / RECORD_SIGNATURE).exists()


def test_provenance_is_slsas(attested: Path) -> None:
    spelled = (attested / "slsa").read_text()
    statement = json_format.Parse(spelled, statement_pb2.Statement())
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    provenance = json_format.Parse(
        json.dumps(json.loads(spelled)["predicate"]), provenance_pb2.Provenance()
    )
    run = read_run(attested / "model" / RECORD_NAME)
    assert provenance.run_details.metadata.invocation_id == run.id
    files = {file.path: file.sha256 for file in run.checkpoints[-1].files}
    assert {it.name: it.digest["sha256"] for it in statement.subject} == files


def test_bill_of_materials_is_cyclonedxs(attested: Path) -> None:
    spelled = (attested / "bom").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(spelled) is None
    bom = json.loads(spelled)
    component = bom["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    (model_hash,) = component["hashes"]
    assert model_hash["content"] == verify(attested / "model").model_digest
    named = {part["bom-ref"] for part in bom["components"]}
    assert set(bom["dependencies"][0]["dependsOn"]) == named


def test_equal_records_give_equal_documents(attested: Path, tmp_path: Path) -> None:
    model = copy_model(attested, tmp_path)
    assert main(["attest", str(model), "--ml-bom", str(tmp_path / "bom")]) == 0
    assert (tmp_path / "bom").read_text() == (attested / "bom").read_text()


def test_signature_is_a_sigstore_bundle(attested: Path) -> None:
    bundle = json.loads((attested / "model" / MODEL_SIGNATURE).read_bytes())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert payload["predicateType"] == "https://model_signing/signature/v1.0"


# ---- from a generation to its training ----


class Story(NamedTuple):
    """Files with which somebody checks a generation, its training and a document of it."""

    bundle: bytes
    keys: list[str]
    origin: Origin


def tell(attested: Path, **training: str) -> Story:
    """Return the files of a generation of the trained model, with changes of its training run."""
    run = read_run(attested / "model" / RECORD_NAME)
    started = make_started()
    started.model_digest = run.checkpoints[-1].model_digest
    started.environment.weights_digest = run.checkpoints[-1].weights_digest
    started.training_run.training_run_id = training.get("run_id", run.id)
    started.training_run.record_head = training.get("head", run.head)
    if "weights" in training:
        started.model_digest = started.environment.weights_digest = training["weights"]
    signer, entries = PrivateKey.generate(), make_entries(started=started)
    documents = [document.encode() for document in (CORPUS * 3)[:8]]
    tree = MerkleTree([hashlib.sha256(document).digest() for document in documents])
    proof = {
        "leaf_index": "1",
        "tree_size": str(len(documents)),
        "audit_path": [base64.b64encode(it).decode() for it in tree.compute_audit_path(1)],
        "verified": True,
    }
    return Story(
        spell(sign(entries, make_finished(), signer), entries),
        [signer.public.pem],
        Origin(
            (attested / "model" / RECORD_SIGNATURE).read_bytes(),
            [(attested / "public.pem").read_text()],
            documents[1],
            json.dumps(proof).encode(),
        ),
    )


def test_document_is_followed_to_run_weights_and_generation(attested: Path) -> None:
    report = verify_bundle(*tell(attested))
    assert report.verified, report.checks
    assert [check.name for check in report.checks][-2:] == ["training", "document"]


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"head": "00" * 32}, "recordHead"),
        ({"run_id": "other"}, "has the id"),
        ({"weights": "00" * 32}, "other weights"),
    ],
)
def test_generation_of_another_training_is_refused(
    attested: Path, training: dict[str, str], words: str
) -> None:
    report = verify_bundle(*tell(attested, **training))
    assert report.checks[-1].passed is False
    assert words in report.checks[-1].detail


def test_training_that_nobody_trusted_has_signed_is_refused(attested: Path) -> None:
    story = tell(attested)
    origin = story.origin._replace(keys=story.keys)
    report = verify_bundle(story.bundle, story.keys, origin)
    assert "no valid signature" in report.checks[-1].detail
    assert not report.verified


def test_every_changed_byte_of_the_trainings_signature_is_refused(attested: Path) -> None:
    story = tell(attested)
    signature = story.origin.training
    for place in range(len(signature)):
        mask = (1, 32, 128)[place % 3]
        changed = signature[:place] + bytes([signature[place] ^ mask]) + signature[place + 1 :]
        origin = story.origin._replace(training=changed)
        assert not verify_bundle(story.bundle, story.keys, origin).verified


@pytest.mark.parametrize(
    ("document", "proof"),
    [
        (b"another text", None),
        (None, b"{}"),
        (None, b"[]"),
        (None, b'{"leaf_index": "-1", "tree_size": "3"}'),
        (None, b'{"leaf_index": 1, "tree_size": 3, "audit_path": ["AAAA", 5]}'),
        (None, b'{"leaf_index": "1", "tree_size": "3", "audit_path": "x"}'),
        (None, json.dumps({"tree_size": 10**18, "audit_path": ["A" * 44] * 65}).encode()),
    ],
)
def test_document_that_is_not_in_the_training_set_is_refused(
    attested: Path, document: bytes | None, proof: bytes | None
) -> None:
    story = tell(attested)
    origin = story.origin._replace(
        document=document or story.origin.document, proof=proof or story.origin.proof
    )
    report = verify_bundle(story.bundle, story.keys, origin)
    assert report.checks[-1].name == "document"
    assert not report.verified


def test_proof_of_another_number_of_documents_is_refused(attested: Path) -> None:
    story = tell(attested)
    proof = json.loads(story.origin.proof or b"")
    # The path to document 1 is as long in a tree of 7 as in one of 8.
    proof["tree_size"] = "7"
    origin = story.origin._replace(proof=json.dumps(proof).encode())
    report = verify_bundle(story.bundle, story.keys, origin)
    assert report.checks[-1].passed is False
    assert "of 7 documents" in report.checks[-1].detail
