"""OpenSSF's model-signing signs, and so accepts, the digest that whence names."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import hashing, signing, verifying
from training_runs import trained

from whence_server.engines.transformers.weights import list_model_files, list_weight_files
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.verify.verify import verify


@pytest.mark.parametrize("where", [".", "checkpoints/checkpoint-4"])
def test_what_model_signing_signs_is_the_model_digest(tmp_path: Path, where: str) -> None:
    trained(tmp_path / "model")
    model, signature = tmp_path / "model" / where, tmp_path / "model.sig"
    private, public = _keys(tmp_path)
    beside = [model / RECORD_NAME, model / "checkpoints"]
    hashes = hashing.Config().set_ignored_paths(paths=beside, ignore_git_paths=False)

    signing.Config().set_hashing_config(hashes).use_elliptic_key_signer(private_key=private).sign(
        model, signature
    )
    statement = _statement(signature)
    (subject,) = statement["subject"]
    resources = {it["name"]: it["digest"] for it in statement["predicate"]["resources"]}
    report = verify(model)
    assert report.findings == []
    assert subject["digest"]["sha256"] == report.model_digest
    assert resources.keys() == set(
        list_model_files(model, list_weight_files(model), with_code=False)
    )

    verifier = verifying.Config().set_hashing_config(hashes)
    verifier.use_elliptic_key_verifier(public_key=public).verify(model, signature)
    (model / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        verifier.verify(model, signature)
    assert ("file", "config.json") in {(it.subject, it.name) for it in verify(model).findings}


def _keys(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = directory / "private.pem", directory / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def _statement(signature: Path) -> dict:
    """The in-toto statement in a Sigstore bundle's DSSE envelope."""
    bundle = json.loads(signature.read_text())
    return json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
