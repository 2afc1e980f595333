"""Reading of bundles; nothing in one is to be believed before `verify_bundle` has checked it."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from whence.proof.bundle_format import MAX_BYTES, MAX_LEAVES, MEDIA_TYPE
from whence.proof.faults import FormatError
from whence.proof.key_list import MAX_ENTRIES
from whence.proof.leaves import KIND_NAMES, KINDS, SALT_BYTES, hash_entry
from whence.proof.merkle_tree import HASH_BYTES
from whence.proof.strict_json import Fields, decode_base64, parse_object

_BEGIN = re.compile(rb'\s*\{\s*"mediaType"\s*:')
_SPARE = 10_000
_MOST = (
    (b"{", MAX_LEAVES + _SPARE, "objects"),
    (b"[", _SPARE, "lists"),
    (b",", 3 * MAX_LEAVES + _SPARE, "commas"),
)
"""Most marks of JSON in a bundle: a shown leaf has three fields. Base64 and hex have none."""


class OpenLeaf(NamedTuple):
    """A leaf whose entry is shown: a serialised message of whence.v1.

    Attributes:
        kind: number of the entry's kind (`leaves.KINDS`).
        salt: salt of the leaf.
        entry: GenerationStarted, Step or BeamRound.
    """

    kind: int
    salt: bytes
    entry: bytes

    @property
    def hash(self) -> bytes:
        """Hash of the leaf."""
        return hash_entry(self.salt, self.kind, self.entry)

    @property
    def kind_name(self) -> str:
        """Name of the entry's kind."""
        return KIND_NAMES[self.kind]


class HiddenLeaf(NamedTuple):
    """A hidden leaf: its hash alone is shown."""

    hash: bytes


class Bundle(NamedTuple):
    """A parsed bundle.

    Attributes:
        envelope: DSSE envelope of the statement.
        keys: entries of the server's key list.
        leaves: the entries before the generation's end, in their order.
        prompt_key: key of the commitments to the prompt; b"" if the start is hidden.
        log: proof that the statement is in the append-only log, as parsed JSON; None without one.
    """

    envelope: bytes
    keys: Sequence[bytes]
    leaves: Sequence[OpenLeaf | HiddenLeaf]
    prompt_key: bytes
    log: dict[str, Any] | None

    def list_open(self) -> Iterator[tuple[int, OpenLeaf]]:
        """Yield the shown leaves with their indexes."""
        for index, leaf in enumerate(self.leaves):
            if isinstance(leaf, OpenLeaf):
                yield index, leaf


def read_bundle(data: bytes) -> Bundle:
    """Parse a bundle, without checking what it says.

    Raises:
        FormatError: it is no bundle, of an unknown version, or larger than allowed.
    """
    if len(data) <= MAX_BYTES:
        _check_numbers(data)
    fields = Fields(parse_object(data, "the bundle", MAX_BYTES), "the bundle")
    media_type = fields.take("mediaType", str)
    if media_type != MEDIA_TYPE:
        raise FormatError(
            f"the bundle has the mediaType {media_type[:80]!r}; this version reads {MEDIA_TYPE!r}"
        )
    envelope = fields.take_bytes("envelope")
    keys = fields.take("keys", list)
    if len(keys) > MAX_ENTRIES:
        raise FormatError(f"the bundle has {len(keys)} keys; at most {MAX_ENTRIES} are allowed")
    leaves = fields.take("leaves", list)
    if len(leaves) > MAX_LEAVES:
        raise FormatError(f"the bundle has {len(leaves):,} leaves; at most {MAX_LEAVES:,} may be")
    parsed = [_read_leaf(leaf, number) for number, leaf in enumerate(leaves)]
    prompt_key = fields.take_or("promptKey", str, "")
    log = fields.take_or("log", dict, {})
    fields.end()
    return Bundle(
        envelope,
        [_read_key(key, number) for number, key in enumerate(keys)],
        parsed,
        decode_base64(prompt_key, "the bundle.promptKey"),
        log or None,
    )


def is_bundle(data: bytes) -> bool:
    """Return whether data begins as a bundle, of this version or another; nothing is parsed."""
    return _BEGIN.match(data) is not None


def _check_numbers(data: bytes) -> None:
    """Check how many values a bundle can have; a parser would need 70 bytes for each of them.

    Raises:
        FormatError: it has more than a bundle of the largest number of leaves.
    """
    for mark, most, what in _MOST:
        if (found := data.count(mark)) > most:
            raise FormatError(
                f"the bundle has {found:,} {what}; a bundle of {MAX_LEAVES:,} leaves, the most "
                f"that are allowed, has fewer than {most:,}"
            )


def _read_key(found: Any, number: int) -> bytes:
    if not isinstance(found, str):
        raise FormatError(f"the bundle.keys[{number}] is no text")
    return decode_base64(found, f"the bundle.keys[{number}]")


def _read_leaf(found: Any, number: int) -> OpenLeaf | HiddenLeaf:
    where = f"the bundle.leaves[{number}]"
    fields = Fields(found, where)
    if "hash" in found:
        hidden = HiddenLeaf(fields.take_hex("hash", HASH_BYTES))
        fields.end()
        return hidden
    name = fields.take("kind", str)
    if name not in KINDS:
        raise FormatError(f"{where}.kind is {name[:40]!r}, expected one of {', '.join(KINDS)}")
    leaf = OpenLeaf(KINDS[name], fields.take_bytes("salt", SALT_BYTES), fields.take_bytes("entry"))
    fields.end()
    return leaf
