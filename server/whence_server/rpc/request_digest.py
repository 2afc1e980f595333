"""Digest of a request, which is equal for equal requests in every order of their maps.

Protobuf's deterministic serialisation sorts maps in an order that differs between its
implementations and versions. So maps are removed first, and appended as JSON with sorted keys.
"""

import copy
import hashlib
import json
import math
from typing import Any, NamedTuple

from google.protobuf import struct_pb2

from whence.v1 import generation_pb2

_FIRST_INEXACT = 2**53
"""Smallest integer that a double cannot distinguish from its neighbours."""


class RequestDigests(NamedTuple):
    """A request's digests, as hex digits.

    Attributes:
        digest: the recorded digest.
        former: the digest that older versions recorded for the same request.
    """

    digest: str
    former: str


def compute_digests(
    request: generation_pb2.GenerateRequest | generation_pb2.ForkGenerationRequest,
    template_arguments: str,
) -> RequestDigests:
    """Compute a request's digests.

    Args:
        request: the request as it arrived.
        template_arguments: `encode_struct` of its template arguments.
    """
    former = _compute_sha256(request.SerializeToString(deterministic=True))
    maps: dict[str, Any] = {
        "labels": dict(request.labels),
        "logit_bias": dict(request.decoding.logit_bias.items()),
        "template_arguments": template_arguments,
    }
    maps = {name: entries for name, entries in maps.items() if entries}
    if not maps:
        return RequestDigests(former, former)
    bare = copy.deepcopy(request)
    # The messages that hold the maps stay: they may be set and empty in another request.
    for name, entries in (
        ("labels", bare.labels),
        ("logit_bias", bare.decoding.logit_bias),
        ("template_arguments", bare.chat.template_arguments.fields),
    ):
        if name in maps:
            entries.clear()
    canonical = json.dumps(maps, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return RequestDigests(
        _compute_sha256(bare.SerializeToString(deterministic=True) + canonical.encode()), former
    )


def encode_struct(struct: struct_pb2.Struct) -> str:
    """Write a Struct as JSON, the same for all orders of its maps; "" if it is empty.

    All numbers of a Struct are doubles. Integral ones below 2**53 are written as integers, as
    JavaScript does.

    Raises:
        ValueError: a number is not finite.
    """
    if not struct.fields:
        return ""
    return json.dumps(_convert_object(struct), ensure_ascii=False, separators=(",", ":"))


def _convert_object(struct: struct_pb2.Struct) -> dict[str, Any]:
    return {key: _convert_value(struct.fields[key]) for key in sorted(struct.fields)}


def _convert_value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise ValueError(f"{number} is not a JSON number")
            exact = number.is_integer() and abs(number) < _FIRST_INEXACT
            return int(number) if exact else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _convert_object(value.struct_value)
        case "list_value":
            return [_convert_value(item) for item in value.list_value.values]
        case _:
            return None


def _compute_sha256(serialised: bytes) -> str:
    return hashlib.sha256(serialised).hexdigest()
