"""Lists of signing keys, in which each key is signed by the one before it, and signs it in turn.

An entry of the list is a DSSE envelope. Its payload is JSON:

    {"type": "whence signing key 1",
     "publicKey": PEM,
     "notBefore": time from which the key signs,
     "previous": {"publicKey": PEM, "notAfter": time after which the key before signs no more}}

The first entry has no "previous", and is signed by its own key alone. Every other entry is signed
by both keys. So trust goes from any key of a list to those after it, and to those before it.
The time of a first entry is that of the list, not of the key: it bounds nothing.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from whence.proof.envelope import KEY_TYPE, parse_envelope
from whence.proof.faults import FormatError, ProofError
from whence.proof.public_key import PublicKey
from whence.proof.strict_json import Fields, parse_object
from whence.proof.times import read_time

TYPE = "whence signing key 1"
MAX_ENTRIES = 64
MAX_SAVED_ENTRIES = 4_096
"""Limit of a saved list: a page tells the keys of all servers of a database."""
GIVEN = "which you trust"
AFTER = "which follows from the key that you trust"
BEFORE = "which came before the key that you trust"
_MAX_SAVED_BYTES = 8 << 20
_MAX_PAYLOAD_BYTES = 32 << 10


class KeyEntry(NamedTuple):
    """One key of a list, whose signatures are valid."""

    key: PublicKey
    not_before: datetime
    previous: PublicKey | None
    previous_not_after: datetime | None


class KeySpan(NamedTuple):
    """A trusted key, and the time in which its signatures count; `trust` is why, in words."""

    key: PublicKey
    trust: str = GIVEN
    not_before: datetime | None = None
    not_after: datetime | None = None


def parse_entry(data: bytes, what: str = "the key's entry") -> KeyEntry:
    """Parse an entry of a key list, and check its signatures.

    Raises:
        FormatError: it is no entry, or of an unknown version.
        ProofError: a signature is missing or wrong.
    """
    envelope = parse_envelope(data, KEY_TYPE, what)
    fields = Fields(parse_object(envelope.payload, what, _MAX_PAYLOAD_BYTES), what)
    if (kind := fields.take("type", str)) != TYPE:
        raise FormatError(f"{what} has the unknown type {kind[:40]!r}, expected {TYPE!r}")
    key = PublicKey(fields.take("publicKey", str), f"{what}.publicKey")
    not_before = read_time(fields.take("notBefore", str), f"{what}.notBefore")
    previous, not_after = None, None
    if before := fields.take_or("previous", dict, {}):
        old = Fields(before, f"{what}.previous")
        previous = PublicKey(old.take("publicKey", str), f"{what}.previous.publicKey")
        not_after = read_time(old.take("notAfter", str), f"{what}.previous.notAfter")
        old.end()
    fields.end()
    for signer in filter(None, (key, previous)):
        if not signer.has_signed(envelope):
            raise ProofError(f"{what} has no valid signature of the key {signer.key_id[:16]}")
    return KeyEntry(key, not_before, previous, not_after)


class SavedKeys(NamedTuple):
    """A saved list of keys.

    Attributes:
        entries: the entries.
        stolen: times from which keys are known to be stolen, by the ids of these keys.
    """

    entries: Sequence[bytes]
    stolen: Mapping[str, datetime] = {}


def parse_saved_list(data: bytes) -> SavedKeys:
    """Return the keys of a saved list: of `/keys.json`, or of `whence keys --json`.

    Raises:
        FormatError: it is no list of keys.
    """
    what = "the saved list of keys"
    try:
        found: object = [parse_object(data, what, _MAX_SAVED_BYTES)]
    except FormatError:
        lines = data[:_MAX_SAVED_BYTES].splitlines()[: MAX_SAVED_ENTRIES + 1]
        found = [parse_object(line, what, _MAX_SAVED_BYTES) for line in lines]
    if isinstance(found, list) and len(found) == 1 and "keys" in found[0]:
        found = found[0]["keys"]
    if not isinstance(found, list) or not found:
        raise FormatError(f"{what} has no keys")
    entries, stolen = [], {}
    for number, one in enumerate(found):
        where = f"{what}[{number}]"
        fields = Fields(one, where)
        entries.append(fields.take_bytes("entry"))
        # The page and the command spell a field's name each in its way.
        for name in ("stolenSince", "stolen_since"):
            if since := fields.take_or(name, str, ""):
                key_id = parse_entry(entries[-1], where).key.key_id
                stolen[key_id] = read_time(since, f"{where}.{name}")
    return SavedKeys(entries, stolen)


_NONE = SavedKeys(())


def find_trusted(
    trusted: Iterable[PublicKey],
    entries: Sequence[bytes],
    known: SavedKeys = _NONE,
    *,
    only_given: bool = False,
) -> Mapping[str, KeySpan]:
    """Return all keys that follow from trusted ones by a key list, by their ids.

    Args:
        trusted: keys that the caller trusts.
        entries: entries of a key list, in any order.
        known: keys of a list from elsewhere, which may have the same ones. One that was stolen is
            trusted only if it is given, and in the time before; no key that follows it is trusted
            for its sake.
        only_given: True to return no others than the trusted keys; the lists bound their time.

    Raises:
        FormatError: an entry is none, or there are too many.
        ProofError: a signature is wrong, or two keys follow one key.
    """
    parsed = _parse_entries(entries, "keys", MAX_ENTRIES)
    listed = {entry.key.key_id: (entry, data) for entry, data in zip(parsed, entries, strict=True)}
    saved = _parse_entries(known.entries, "known keys", MAX_SAVED_ENTRIES)
    for entry, data in zip(saved, known.entries, strict=True):
        same = listed.get(entry.key.key_id)
        # Servers with one key each begin a list with it.
        both_first = same is not None and entry.previous is None and same[0].previous is None
        if not both_first and (same is None or same[1] != data):
            parsed.append(entry)
    by_key = {entry.key.key_id: entry for entry in parsed}
    after = {entry.previous.key_id: entry for entry in parsed if entry.previous is not None}
    if len(by_key) != len(parsed) or len(after) != sum(e.previous is not None for e in parsed):
        raise ProofError("a key is listed twice, or two keys follow one key")
    found: dict[str, KeySpan] = {}
    for key in trusted:
        for one, trust in (
            [(key, GIVEN)] if only_given else _follow(key, by_key, after, known.stolen)
        ):
            since = known.stolen.get(one.key_id)
            if trust == GIVEN or (one.key_id not in found and since is None):
                span = _make_span(one, trust, by_key, after)
                found[one.key_id] = span if since is None else _end_at_theft(span, since)
    return found


def _end_at_theft(span: KeySpan, since: datetime) -> KeySpan:
    end = since if span.not_after is None else min(since, span.not_after)
    told = f"{span.trust} and which was stolen later: its thief can date a statement before that"
    return span._replace(not_after=end, trust=told)


def _parse_entries(entries: Sequence[bytes], where: str, most: int) -> list[KeyEntry]:
    if len(entries) > most:
        raise FormatError(f"{len(entries)} {where} are listed; at most {most} are allowed")
    return [parse_entry(data, f"{where}[{number}]") for number, data in enumerate(entries)]


def _follow(
    key: PublicKey,
    by_key: Mapping[str, KeyEntry],
    after: Mapping[str, KeyEntry],
    stolen: Collection[str],
) -> list[tuple[PublicKey, str]]:
    """Return a key, the keys after it, and the keys before it, but none that follow those."""
    chain, seen = [(key, GIVEN)], {key.key_id}
    last: PublicKey | None = key
    # The thief of a key signs with it whatever key shall follow: nothing leads over a stolen one.
    while last is not None and last.key_id not in stolen:
        entry = after.get(last.key_id)
        last = None if entry is None or entry.key.key_id in seen else entry.key
        if last is not None:
            chain.append((last, AFTER))
            seen.add(last.key_id)
    before: PublicKey | None = key
    while before is not None and (entry := by_key.get(before.key_id)) is not None:
        before = entry.previous
        if before is None or before.key_id in seen:
            break
        chain.append((before, BEFORE))
        seen.add(before.key_id)
    return chain


def _make_span(
    key: PublicKey, trust: str, by_key: Mapping[str, KeyEntry], after: Mapping[str, KeyEntry]
) -> KeySpan:
    own, next_entry = by_key.get(key.key_id), after.get(key.key_id)
    begin = None if own is None or own.previous is None else own.not_before
    return KeySpan(key, trust, begin, None if next_entry is None else next_entry.previous_not_after)
