"""Signatures of a trained model: its files by OpenSSF model signing, and the head of its record."""

import base64
import hashlib
import json
from pathlib import Path

from whence.proof.envelope import STATEMENT_TYPE as PAYLOAD_TYPE
from whence.proof.predicate import STATEMENT_TYPE
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.lineage.reader import RECORD_NAME
from whence_server.proof.key_files import read_private_key, write_file, write_private
from whence_server.proof.signer import PrivateKey, Signer, seal
from whence_server.training.attest.trained import TrainedModel, read_trained

MODEL_SIGNATURE, RECORD_SIGNATURE = "model.sig", "lineage.sig"
"""Names of the signatures in the model's directory."""
RECORD_PREDICATE = "urn:whence:training:1"

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MODEL_PREDICATE = "https://model_signing/signature/v1.0"
# Files that lie beside a model and are none of it: its signature covers the others alone.
_BESIDE = [
    RECORD_NAME,
    f"{RECORD_NAME}.lock",
    MODEL_SIGNATURE,
    RECORD_SIGNATURE,
    "checkpoints",
    "training_args.bin",
    "provenance.json",
    "ml-bom.json",
    ".git",
    ".gitattributes",
    ".github",
    ".gitignore",
]


def sign_model(directory: Path, signing_key: Path) -> PrivateKey:
    """Sign the model in a directory, and the head of its record, by a key; return the key.

    Args:
        directory: the directory of the model and its record.
        signing_key: file of the private key; made with mode 0600 if it is missing.

    Raises:
        ConfigurationError: the key cannot be used.
        LineageError: the record or the model is damaged, or a signature cannot be written.
    """
    key = open_key(signing_key)
    trained = read_trained(directory)
    check_files(directory, trained)
    # After a crash in between there is no signature of another model beside a new one.
    remove_signatures(directory)
    for name, content in (
        (MODEL_SIGNATURE, spell_model_signature(trained, key)),
        (RECORD_SIGNATURE, spell_record_signature(trained, key)),
    ):
        try:
            write_file(directory / name, content)
        except ConfigurationError as error:
            raise LineageError(str(error)) from None
    return key


def remove_signatures(directory: Path) -> None:
    """Remove the signatures of a model that is about to be replaced.

    Raises:
        LineageError: one cannot be removed.
    """
    for name in (MODEL_SIGNATURE, RECORD_SIGNATURE):
        try:
            (directory / name).unlink(missing_ok=True)
        except OSError as error:
            raise LineageError(
                f"{directory / name}: cannot be removed ({error.strerror})"
            ) from error


def open_key(path: Path) -> PrivateKey:
    """Read a private key; make it if it is missing.

    Raises:
        ConfigurationError: it cannot be used.
    """
    try:
        return read_private_key(path)
    except FileNotFoundError:
        key = PrivateKey.generate()
        write_private(path, key.encode())
        return key


def check_files(directory: Path, trained: TrainedModel) -> None:
    """Check that the files of a model are those on record: nothing else is signed.

    Raises:
        LineageError: a file is missing or differs.
    """
    for file in trained.checkpoint.files:
        try:
            with (directory / file.path).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise LineageError(f"{directory / file.path}: {error.strerror}") from error
        if found != file.sha256:
            raise LineageError(
                f"{directory / file.path}: differs from the record of its training, and is not "
                "signed; `whence-server verify-model` says more"
            )


def spell_model_signature(trained: TrainedModel, key: Signer) -> bytes:
    """Return OpenSSF model signing's signature of the files, a Sigstore bundle as JSON."""
    checkpoint = trained.checkpoint
    resources = [
        {"name": file.path, "algorithm": "sha256", "digest": file.sha256}
        for file in sorted(checkpoint.files, key=lambda file: file.path)
    ]
    whole = hashlib.sha256(b"".join(bytes.fromhex(file["digest"]) for file in resources))
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": trained.name, "digest": {"sha256": whole.hexdigest()}}],
        "predicateType": _MODEL_PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": _BESIDE,
            },
            "resources": resources,
        },
    }
    payload = json.dumps(statement).encode()
    signature = key.sign(PAYLOAD_TYPE, payload)
    bundle = {
        "mediaType": _BUNDLE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(key.public.pem.encode()).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature.value).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, indent=1).encode()


def spell_record_signature(trained: TrainedModel, key: Signer) -> bytes:
    """Return the signed statement about a training's record, a DSSE envelope as JSON."""
    run, checkpoint = trained
    dataset = run.training_set.dataset
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"training:{run.id}", "digest": {"sha256": run.head}}],
        "predicateType": RECORD_PREDICATE,
        "predicate": {
            "trainingRunId": run.id,
            "recordHead": run.head,
            "numEntries": run.num_entries,
            "step": str(checkpoint.step),
            "modelDigest": checkpoint.model_digest,
            "weightsDigest": checkpoint.weights_digest,
            "documentsRoot": dataset.merkle_root if dataset else "",
            "numDocuments": str(dataset.num_documents if dataset else 0),
        },
    }
    return seal(PAYLOAD_TYPE, json.dumps(statement).encode(), key)
