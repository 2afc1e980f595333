"""Parsers of the lists in OpenTelemetry's variables: headers and resource attributes.

Each function raises ValueError on invalid text, with a message that says what would be right. The
message gives the position of the wrong entry and not its value: headers may hold keys, and
messages are logged.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110: a field name, in lower case
_GRPC_NAME = re.compile(r"[0-9a-z_.-]+")  # gRPC over HTTP/2: a metadata key
_VISIBLE = re.compile(r"[\t\x20-\x7e]*")
_GRPC_VISIBLE = re.compile(r"[\x20-\x7e]*")
_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
BINARY_SUFFIX = "-bin"
_TRANSPORT_HEADERS = frozenset(
    {
        *("connection", "content-encoding", "content-length", "content-type", "expect"),
        *("keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Headers that the transport sets: another value would break requests, or be dropped."""
_GRPC_HEADERS = frozenset({"accept-encoding", "host", "user-agent"})


def parse_headers(text: str, *, grpc: bool) -> dict[str, str]:
    """Read "name=value,name=value" with percent-encoded values; return names in lower case.

    Args:
        text: value of the variable.
        grpc: whether the headers are for gRPC metadata, which allows fewer characters. There, a
            name that ends in "-bin" has a binary value in base64.
    """
    headers: dict[str, str] = {}
    for place, pair in _split_pairs(text, "header"):
        name, equals, value = pair.partition("=")
        name = unquote(name.strip()).lower()
        if not equals or not _TOKEN.fullmatch(name):
            raise ValueError(f"{place} is not NAME=VALUE; expected NAME=VALUE,NAME=VALUE")
        what = f"{place} ({name})"
        if name in headers:
            raise ValueError(f"{what} is given twice; give it once")
        headers[name] = _decode(value.strip(), what)
        _check_header(name, headers[name], what, grpc=grpc)
    return headers


def decode_binary_value(text: str) -> bytes:
    """Decode the base64 value, padded or not, of a gRPC header whose name ends in "-bin"."""
    padded = text.rstrip("=")
    return base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)


def parse_resource_attributes(text: str) -> dict[str, str]:
    """Read "key=value,key=value" with percent-encoded keys and values."""
    attributes: dict[str, str] = {}
    for place, pair in _split_pairs(text, "attribute"):
        key, equals, value = pair.partition("=")
        key = _decode(key.strip(), place)
        if not equals or not key:
            raise ValueError(f"{place} is not KEY=VALUE; expected KEY=VALUE,KEY=VALUE")
        what = f"{place} ({key})"
        if key in attributes:
            raise ValueError(f"{what} is given twice; give it once")
        attributes[key] = _decode(value.strip(), what)
        if _CONTROL.search(key + attributes[key]):
            raise ValueError(f"{what} holds a control character; expected text")
    return attributes


def _check_header(name: str, value: str, what: str, *, grpc: bool) -> None:
    is_grpc_header = name in _GRPC_HEADERS or name.startswith("grpc-")
    if name in _TRANSPORT_HEADERS or (grpc and is_grpc_header):
        raise ValueError(f"{what} is set by the transport; leave it out")
    if not (_GRPC_VISIBLE if grpc else _VISIBLE).fullmatch(value):
        raise ValueError(f"{what}: its value has characters that a header cannot hold")
    if not grpc:
        return
    if not _GRPC_NAME.fullmatch(name):
        raise ValueError(f"{what}: gRPC allows only letters, digits, '_', '-' and '.' in names")
    if name.endswith(BINARY_SUFFIX):
        try:
            decode_binary_value(value)
        except binascii.Error:
            raise ValueError(
                f"{what}: over gRPC, the value of a name that ends in {BINARY_SUFFIX} is binary; "
                "expected base64"
            ) from None


def _split_pairs(text: str, noun: str) -> Iterator[tuple[str, str]]:
    """Yield each non-empty pair with a description of its position."""
    for place, pair in enumerate(text.split(","), 1):
        if pair.strip():
            yield f"{noun} {place}", pair


def _decode(text: str, what: str) -> str:
    if _ESCAPE.search(text):
        raise ValueError(f"{what} has a % without two hex digits after it; write %25 for a %")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8 after percent-decoding; expected UTF-8") from None
