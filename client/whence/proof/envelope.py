"""DSSE envelopes: signed bytes with their type (https://github.com/secure-systems-lab/dsse)."""

import binascii
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from whence.proof.faults import FormatError
from whence.proof.strict_json import Fields, parse_object

STATEMENT_TYPE = "application/vnd.in-toto+json"
KEY_TYPE = "application/vnd.whence.key+json"
MAX_BYTES = 1 << 20
"""Limit of an envelope's size."""
_MAX_SIGNATURES = 8


class Signature(NamedTuple):
    """One signature of an envelope."""

    key_id: str
    value: bytes


class Envelope(NamedTuple):
    """A signed payload. Nothing is known of its signatures until they are checked."""

    payload_type: str
    payload: bytes
    signatures: Sequence[Signature]


def encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def make_envelope(payload_type: str, payload: bytes, signatures: Sequence[Signature]) -> bytes:
    """Return an envelope as JSON in UTF-8."""
    # Base64 needs no escapes: the long part does not go through an encoder.
    listed = ",".join(
        f'{{"keyid":{_quote(key_id)},"sig":"{binascii.b2a_base64(value, newline=False).decode()}"}}'
        for key_id, value in signatures
    )
    return (
        f'{{"payload":"{binascii.b2a_base64(payload, newline=False).decode()}",'
        f'"payloadType":{_quote(payload_type)},"signatures":[{listed}]}}'
    ).encode()


@lru_cache(maxsize=64)
def _quote(text: str) -> str:
    """Return a text as JSON; the few texts that come (types and ids of keys) are kept."""
    return json.dumps(text)


def parse_envelope(data: bytes, payload_type: str, what: str) -> Envelope:
    """Parse an envelope without checking its signatures.

    Args:
        data: JSON in UTF-8.
        payload_type: type that its payload has to have.
        what: name of the envelope for errors.

    Raises:
        FormatError: it is no envelope, or of another type.
    """
    fields = Fields(parse_object(data, what, MAX_BYTES), what)
    kind = fields.take("payloadType", str)
    if kind != payload_type:
        raise FormatError(f"{what} has the payloadType {kind[:80]!r}, expected {payload_type!r}")
    payload = fields.take_bytes("payload")
    given = fields.take("signatures", list)
    fields.end()
    if not 1 <= len(given) <= _MAX_SIGNATURES:
        raise FormatError(f"{what} has {len(given)} signatures, expected 1 to {_MAX_SIGNATURES}")
    signatures = []
    for number, one in enumerate(given):
        signed = Fields(one, f"{what}.signatures[{number}]")
        signatures.append(Signature(signed.take("keyid", str), signed.take_bytes("sig")))
        signed.end()
    if len({signature.key_id for signature in signatures}) != len(signatures):
        raise FormatError(f"{what} has two signatures of one key")
    return Envelope(kind, payload, signatures)
