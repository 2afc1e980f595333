"""Timestamps of checkpoints (RFC 3161): an authority signs that it has seen one at a time.

The packages `rfc3161-client` and `cryptography` are imported at their first use.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from whence.proof.faults import FormatError, ProofError

QUERY_TYPE, ANSWER_TYPE = "application/timestamp-query", "application/timestamp-reply"
MAX_ANSWER_BYTES = 1 << 20
_MISSING = "timestamps need the package `rfc3161-client`: pip install 'whence[timestamps]'"


class Query(NamedTuple):
    """Request of a timestamp.

    Attributes:
        data: the request, DER, to be sent to an authority.
        request: the same, parsed; its nonce is that of the answer.
    """

    data: bytes
    request: Any


def make_query(note: bytes) -> Query:
    """Return the request of a timestamp of a checkpoint, with a nonce.

    Raises:
        ProofError: a package is missing, or there is nothing to stamp.
    """
    try:
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder
    except ImportError:
        raise ProofError(_MISSING) from None
    if not note:
        raise FormatError("the checkpoint is empty")
    builder = TimestampRequestBuilder().data(note).hash_algorithm(HashAlgorithm.SHA256)
    request = builder.build()
    return Query(request.as_bytes(), request)


def check_timestamp(
    note: bytes, answer: bytes, roots: Sequence[bytes], query: Query | None = None
) -> datetime:
    """Check the timestamp of a checkpoint.

    Args:
        note: the signed checkpoint.
        answer: the authority's answer, DER.
        roots: certificates of the authorities that are trusted, PEM; each file may have several.
        query: the request that it answers; None for a kept answer.

    Returns:
        The time at which the authority saw the checkpoint, in UTC.

    Raises:
        ProofError: a package is missing, a certificate is none, or the timestamp is malformed, of
            another checkpoint, or not signed by a trusted authority.
    """
    try:
        from cryptography.x509 import load_pem_x509_certificates
        from rfc3161_client import (
            VerificationError,
            VerifierBuilder,
            decode_timestamp_response,
        )
    except ImportError:
        raise ProofError(_MISSING) from None
    builder = VerifierBuilder() if query is None else VerifierBuilder.from_request(query.request)
    try:
        # One that is given twice is one.
        for root in {cert for pem in roots for cert in load_pem_x509_certificates(pem)}:
            builder = builder.add_root_certificate(root)
        verifier = builder.build()
    except ValueError as error:
        raise FormatError(f"the authority's certificate is none in PEM: {error}") from None
    try:
        decoded = decode_timestamp_response(answer)
        verifier.verify_message(decoded, note)
        seen: datetime = decoded.tst_info.gen_time
    except (VerificationError, ValueError) as error:
        raise ProofError(f"the timestamp does not hold: {error or type(error).__name__}") from None
    return seen.astimezone(UTC)
