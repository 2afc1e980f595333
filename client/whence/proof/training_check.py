"""Check of the training that made a generation's weights, and of a document that it read."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from whence.proof.envelope import STATEMENT_TYPE as PAYLOAD_TYPE
from whence.proof.envelope import parse_envelope
from whence.proof.faults import FormatError, ProofError
from whence.proof.merkle import verify_inclusion
from whence.proof.merkle_tree import HASH_BYTES, hash_leaf
from whence.proof.predicate import STATEMENT_TYPE
from whence.proof.public_key import PublicKey
from whence.proof.statement import Statement, find_teller
from whence.proof.strict_json import Fields, decode_base64, decode_hex, parse_object

PREDICATE_TYPE = "urn:whence:training:1"
_MAX_BYTES = 1 << 20
_MAX_PATH = 64


class Training(NamedTuple):
    """A signed training that made the weights of a generation.

    Attributes:
        said: what its statement says.
        key_id: id of the key that signed it.
    """

    said: Mapping[str, Any]
    key_id: str


def check_training(data: bytes, trusted: Iterable[PublicKey], statement: Statement) -> Training:
    """Check that a signed training made the weights of a generation.

    Args:
        data: the training's signature, `lineage.sig`: a DSSE envelope.
        trusted: keys; one of them must have signed it.
        statement: the statement about the generation, whose signature is checked already.

    Raises:
        FormatError: it is no statement about a training, or of an unknown version.
        ProofError: no trusted key has signed it, it is about other weights, or another engine or
            process told the generation.
    """
    what = "the training's statement"
    if teller := find_teller(statement.predicate):
        raise ProofError(
            f"the tokens were {teller}, and nobody vouches for the weights that it names"
        )
    envelope = parse_envelope(data, PAYLOAD_TYPE, what)
    signer = next((key for key in trusted if key.has_signed(envelope)), None)
    if signer is None:
        raise ProofError(f"{what} has no valid signature of a key that you trust for trainings")
    fields = Fields(parse_object(envelope.payload, what, _MAX_BYTES), what)
    kinds = fields.take("_type", str), fields.take("predicateType", str)
    if kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise FormatError(f"{what} has the type {kinds[1][:80]!r}, expected {PREDICATE_TYPE!r}")
    training = fields.take("predicate", dict)
    run = _get_object(statement.predicate, "trainingRun")
    if not run:
        raise ProofError("the statement about the generation names no training run")
    for ours, theirs in (("id", "trainingRunId"), ("recordHead", "recordHead")):
        if run.get(ours) != training.get(theirs):
            raise ProofError(
                f"the generation's training run has the {ours} {str(run.get(ours))[:80]!r}, and "
                f"the signed training {str(training.get(theirs))[:80]!r}"
            )
    model = _get_object(statement.predicate, "model")
    pairs = (("digest", "modelDigest"), ("weightsDigest", "weightsDigest"))
    adapter = _get_object(model, "adapter")
    if not any(
        training.get(theirs) and training.get(theirs) in (model.get(ours), adapter.get(ours))
        for ours, theirs in pairs
    ):
        raise ProofError("the signed training made other weights than the generation's")
    return Training(training, signer.key_id)


def check_document(document: bytes, proof: bytes, training: Mapping[str, Any]) -> str:
    """Check that a document is in the training set; return what was found, in words.

    Args:
        document: bytes of the document.
        proof: output of `whence training proof WHICH --json`.
        training: what the signed training says.

    Raises:
        FormatError: it is no proof.
        ProofError: the document is not in the training set, by this proof.
    """
    what = "the document's proof"
    found = parse_object(proof, what, _MAX_BYTES)
    index, size = _read_number(found, "leaf_index"), _read_number(found, "tree_size")
    path = found.get("audit_path", [])
    if not isinstance(path, list) or len(path) > _MAX_PATH:
        raise FormatError(f"{what}.audit_path is no list of at most {_MAX_PATH} hashes")
    siblings = [_read_hash(sibling, f"{what}.audit_path") for sibling in path]
    root = training.get("documentsRoot")
    if not isinstance(root, str) or not root:
        raise ProofError("the signed training names no documents: they were not recorded")
    wanted = decode_hex(root, HASH_BYTES, "the training's statement.documentsRoot")
    # A path fits trees of several sizes: the root alone does not tell how many documents there are.
    if str(size) != training.get("numDocuments"):
        raise ProofError(
            f"{what} is of {size:,} documents, and the signed training had "
            f"{str(training.get('numDocuments'))[:20]}"
        )
    leaf = hash_leaf(hashlib.sha256(document).digest())
    if not verify_inclusion(leaf, index, size, siblings, wanted):
        raise ProofError("the document is not in the training set, by this proof")
    return f"document {index} of {size:,} of the training"


def _read_number(found: Mapping[str, Any], name: str) -> int:
    """Return a number that protobuf's JSON spells as text, and leaves out if it is 0."""
    spelled = str(found.get(name, 0))
    if not (spelled.isascii() and spelled.isdecimal() and len(spelled) < 20):
        raise FormatError(f"the document's proof.{name} is no number")
    return int(spelled)


def _read_hash(spelled: Any, where: str) -> bytes:
    if not isinstance(spelled, str):
        raise FormatError(f"{where} has an element that is no text")
    return decode_base64(spelled, where)


def _get_object(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name)
    return value if isinstance(value, dict) else {}
