"""Lists of names and values in OpenTelemetry's variables: headers, and resource attributes.

Every function here raises ValueError for what it cannot read, and says what would be right. What
is wrong is told by its place: headers hold keys, and errors are logged.
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
_OURS = frozenset(
    {
        *("connection", "content-encoding", "content-length", "content-type", "expect"),
        *("keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    }
)
"""Said by the transport itself: another value would break requests, or be dropped."""
_GRPCS = frozenset({"accept-encoding", "host", "user-agent"})


def parse_headers(text: str, *, grpc: bool) -> dict[str, str]:
    """Read "name=value,name=value", where values are percent-encoded; names in lower case.

    Args:
        text: the variable's.
        grpc: whether they become gRPC's metadata, which allows less. A name that ends in "-bin"
            has a binary value there, in base64.
    """
    headers: dict[str, str] = {}
    for place, pair in _split_pairs(text, "header"):
        name, equals, value = pair.partition("=")
        name = unquote(name.strip()).lower()
        if not equals or not _TOKEN.fullmatch(name):
            raise ValueError(f"{place} is no NAME=VALUE; expected NAME=VALUE,NAME=VALUE")
        what = f"{place} ({name})"
        if name in headers:
            raise ValueError(f"{what} is there twice; give it once")
        headers[name] = _decode(value.strip(), what)
        _check_header(name, headers[name], what, grpc=grpc)
    return headers


def decode_binary_value(text: str) -> bytes:
    """Decode the value of a gRPC header whose name ends in "-bin": base64, padded or not."""
    padded = text.rstrip("=")
    return base64.b64decode(padded + "=" * (-len(padded) % 4), validate=True)


def parse_resource_attributes(text: str) -> dict[str, str]:
    """Read "key=value,key=value", where commas and the like are percent-encoded."""
    attributes: dict[str, str] = {}
    for place, pair in _split_pairs(text, "attribute"):
        key, equals, value = pair.partition("=")
        key = _decode(key.strip(), place)
        if not equals or not key:
            raise ValueError(f"{place} is no KEY=VALUE; expected KEY=VALUE,KEY=VALUE")
        what = f"{place} ({key})"
        if key in attributes:
            raise ValueError(f"{what} is there twice; give it once")
        attributes[key] = _decode(value.strip(), what)
        if _CONTROL.search(key + attributes[key]):
            raise ValueError(f"{what} holds a control character; expected text")
    return attributes


def _check_header(name: str, value: str, what: str, *, grpc: bool) -> None:
    if name in _OURS or (grpc and (name in _GRPCS or name.startswith("grpc-"))):
        raise ValueError(f"{what} is set by the transport itself; leave it out")
    if not (_GRPC_VISIBLE if grpc else _VISIBLE).fullmatch(value):
        raise ValueError(f"{what}: its value has characters that no header can hold")
    if not grpc:
        return
    if not _GRPC_NAME.fullmatch(name):
        raise ValueError(f"{what}: gRPC takes names of letters, digits, '_', '-' and '.' only")
    if name.endswith(BINARY_SUFFIX):
        try:
            decode_binary_value(value)
        except binascii.Error:
            raise ValueError(
                f"{what}: over gRPC, the value of a name that ends in {BINARY_SUFFIX} is binary; "
                "expected base64"
            ) from None


def _split_pairs(text: str, noun: str) -> Iterator[tuple[str, str]]:
    """Return each pair with words for its place; empty ones, as after a last comma, are none."""
    for place, pair in enumerate(text.split(","), 1):
        if pair.strip():
            yield f"{noun} {place}", pair


def _decode(text: str, what: str) -> str:
    if _ESCAPE.search(text):
        raise ValueError(f"{what} has a % that begins no escape such as %20; write %25 for a %")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is no UTF-8 once it is decoded; expected UTF-8") from None
