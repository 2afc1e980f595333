"""Reading of signed statements about generations (in-toto Statement v1)."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from whence.proof.envelope import MAX_BYTES, parse_envelope
from whence.proof.envelope import STATEMENT_TYPE as PAYLOAD_TYPE
from whence.proof.faults import FormatError, ProofError
from whence.proof.key_list import KeySpan
from whence.proof.merkle_tree import HASH_BYTES
from whence.proof.predicate import PREDICATE_TYPE, STATEMENT_TYPE, TREE
from whence.proof.strict_json import Fields, parse_object
from whence.proof.times import read_time


class Statement(NamedTuple):
    """A statement whose form is right. Its signature is checked apart.

    Attributes:
        generation_id: id of the generation.
        root: root of the Merkle tree over its entries, 32 bytes.
        num_leaves: number of entries.
        predicate: everything that it says, by name.
    """

    generation_id: str
    root: bytes
    num_leaves: int
    predicate: Mapping[str, Any]


def parse_statement(payload: bytes) -> Statement:
    """Parse an envelope's payload.

    Raises:
        FormatError: it is no statement about a generation, or of an unknown version.
    """
    what = "the statement"
    fields = Fields(parse_object(payload, what, MAX_BYTES), what)
    _expect(fields.take("_type", str), STATEMENT_TYPE, f"{what}._type")
    _expect(fields.take("predicateType", str), PREDICATE_TYPE, f"{what}.predicateType")
    subjects = fields.take("subject", list)
    predicate = fields.take("predicate", dict)
    fields.end()
    if len(subjects) != 1:
        raise FormatError(f"{what} has {len(subjects)} subjects, expected 1")
    subject = Fields(subjects[0], f"{what}.subject")
    name = subject.take("name", str)
    digests = Fields(subject.take("digest", dict), f"{what}.subject.digest")
    subject.end()
    root = digests.take_hex("sha256", HASH_BYTES)
    digests.end()
    record = Fields(predicate.get("record"), f"{what}.predicate.record")
    _expect(record.take("tree", str), TREE, f"{what}.predicate.record.tree")
    _expect(record.take("root", str), root.hex(), f"{what}.predicate.record.root")
    num_leaves = record.take("numLeaves", int)
    _check_types(predicate)
    generation_id = predicate.get("generationId")
    if not isinstance(generation_id, str) or name != f"generation:{generation_id}":
        raise FormatError(f"{what}.subject names {name[:60]!r}, not the predicate's generation")
    return Statement(generation_id, root, num_leaves, predicate)


def find_teller(predicate: Mapping[str, Any]) -> str:
    """Return who told the server the tokens, in words; "" if it says that it computed them."""
    if "recordedBy" in predicate:
        return f"told by another process ({json.dumps(predicate['recordedBy'])[:80]})"
    if "upstream" in predicate:
        return f"told by another engine ({json.dumps(predicate['upstream'])[:80]})"
    return ""


class Signed(NamedTuple):
    """A statement with a valid signature of a trusted key.

    Attributes:
        statement: the statement.
        key_id: id of the key that signed it.
        trust: why the key is trusted, in words.
    """

    statement: Statement
    key_id: str
    trust: str


def open_statement(envelope: bytes, trusted: Mapping[str, KeySpan]) -> Signed:
    """Check the signature of a statement, and return what it says.

    Args:
        envelope: the DSSE envelope.
        trusted: trusted keys by their ids, as `find_trusted` returns them.

    Raises:
        FormatError: it is no statement, or of an unknown version.
        ProofError: no trusted key has signed it in the time in which its signatures count.
    """
    parsed = parse_envelope(envelope, PAYLOAD_TYPE, "the envelope")
    signers = [span for span in trusted.values() if span.key.has_signed(parsed)]
    if not signers:
        named = ", ".join(signature.key_id[:16] for signature in parsed.signatures)
        raise ProofError(
            f"the statement has no valid signature of a trusted key; it names the key {named!r}"
        )
    statement = parse_statement(parsed.payload)
    signed_at = statement.predicate.get("signedAt")
    if not isinstance(signed_at, str):
        raise FormatError("the statement.predicate.signedAt is missing")
    moment = read_time(signed_at, "the statement.predicate.signedAt")
    for span in signers:
        begin, end = span.not_before, span.not_after
        if (begin is None or begin <= moment) and (end is None or moment <= end):
            return Signed(statement, span.key.key_id, span.trust)
    span = signers[0]
    limits = f"from {span.not_before or 'its beginning'} to {span.not_after or 'now'}"
    raise ProofError(
        f"the statement was signed at {signed_at}, and signatures of the key "
        f"{span.key.key_id[:16]} count {limits}"
    )


def _check_types(predicate: Mapping[str, Any]) -> None:
    where = "the statement.predicate"
    fields = Fields(predicate, where)
    for name in ("model", "prompt", "decoding", "results"):
        fields.take(name, dict)
    for name in ("startTime", "endTime"):
        read_time(fields.take(name, str), f"{where}.{name}")


def _expect(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise FormatError(f"{where} is {found[:80]!r}, expected {expected!r}")
