"""What makes two requests equal: a digest that does not depend on the order of a map.

Protobuf's own deterministic serialisation sorts maps, but by an order that differs between its
implementations and versions. So maps are left out of it, and follow as JSON with sorted keys.
"""

import hashlib
import json
import math
from typing import Any, NamedTuple

from google.protobuf import struct_pb2

from whence.v1 import generation_pb2

_FIRST_INEXACT = 2**53
"""From here on a double no longer tells an integer from its neighbours."""


class RequestDigests(NamedTuple):
    """A request's digests, as hex digits.

    Attributes:
        digest: the one that goes on record.
        former: what older versions had on record for the same request.
    """

    digest: str
    former: str


def request_digests(
    request: generation_pb2.GenerateRequest, template_arguments: str
) -> RequestDigests:
    """Digest a request.

    Args:
        request: as it arrived.
        template_arguments: `struct_json` of its template arguments.
    """
    former = _sha256(request.SerializeToString(deterministic=True))
    maps: dict[str, Any] = {
        "labels": dict(request.labels),
        "logit_bias": dict(request.decoding.logit_bias.items()),
        "template_arguments": template_arguments,
    }
    maps = {name: entries for name, entries in maps.items() if entries}
    if not maps:
        return RequestDigests(former, former)
    bare = generation_pb2.GenerateRequest()
    bare.CopyFrom(request)
    # Cleared, the messages around them stay: they may be set and empty in another request.
    for name, entries in (
        ("labels", bare.labels),
        ("logit_bias", bare.decoding.logit_bias),
        ("template_arguments", bare.chat.template_arguments.fields),
    ):
        if name in maps:
            entries.clear()
    canonical = json.dumps(maps, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return RequestDigests(
        _sha256(bare.SerializeToString(deterministic=True) + canonical.encode()), former
    )


def struct_json(struct: struct_pb2.Struct) -> str:
    """Write a Struct as JSON, the same for all orders of its maps; "" where it is empty.

    A Struct has doubles alone. An integral one is most probably an integer to its sender: it is
    written as one, as JavaScript does, as long as doubles tell integers apart.

    Raises:
        ValueError: a number is not finite.
    """
    if not struct.fields:
        return ""
    return json.dumps(_object(struct), ensure_ascii=False, separators=(",", ":"))


def _object(struct: struct_pb2.Struct) -> dict[str, Any]:
    return {key: _plain(struct.fields[key]) for key in sorted(struct.fields)}


def _plain(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise ValueError(f"{number} is no number in JSON")
            exact = number.is_integer() and abs(number) < _FIRST_INEXACT
            return int(number) if exact else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _object(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None


def _sha256(serialised: bytes) -> str:
    return hashlib.sha256(serialised).hexdigest()
