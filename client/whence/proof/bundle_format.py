"""Format of a bundle: one generation's statement, with as much of its content as is shown.

A bundle is one JSON object:

    {"mediaType": "application/vnd.whence.bundle+json;version=1",
     "envelope": base64 of the statement's DSSE envelope,
     "keys": [base64 of an entry of the key list, ...],
     "leaves": [{"kind": name, "salt": base64, "entry": base64} or {"hash": hex digits}, ...],
     "promptKey": base64,                       only with the start
     "log": {...}}                              only with an append-only log
"""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence

from whence.proof.leaves import KIND_NAMES

MEDIA_TYPE = "application/vnd.whence.bundle+json;version=1"
MAX_BYTES = 256 << 20
"""Limit of a bundle's size, which is checked before it is parsed."""
MAX_LEAVES = 400_000
"""Limit of the number of entries, which is checked before a bundle is parsed."""


def spell_head(envelope: bytes, keys: Sequence[bytes]) -> str:
    """Return the beginning of a bundle's JSON, up to the first leaf."""
    listed = json.dumps([_encode(key) for key in keys], separators=(",", ":"))
    return (
        f'{{"mediaType":{json.dumps(MEDIA_TYPE)},"envelope":"{_encode(envelope)}",'
        f'"keys":{listed},"leaves":['
    )


def spell_open_leaf(kind: int, salt: bytes, entry: bytes) -> str:
    """Return the JSON of a leaf whose entry is shown."""
    return f'{{"kind":"{KIND_NAMES[kind]}","salt":"{_encode(salt)}","entry":"{_encode(entry)}"}}'


def spell_hidden_leaf(leaf_hash: bytes) -> str:
    """Return the JSON of a leaf whose entry is hidden."""
    return f'{{"hash":"{leaf_hash.hex()}"}}'


def spell_tail(prompt_key: bytes = b"", log: str = "") -> str:
    """Return the end of a bundle's JSON, after the last leaf.

    Args:
        prompt_key: key of the commitments to the prompt; b"" if the start is hidden.
        log: JSON of the proof that the statement is in the append-only log; "" without one.
    """
    end = "]"
    if prompt_key:
        end += f',"promptKey":"{_encode(prompt_key)}"'
    if log:
        end += f',"log":{log}'
    return end + "}\n"


def join_leaves(leaves: Iterable[str]) -> Iterator[str]:
    """Yield the JSON of leaves with commas between them."""
    for number, leaf in enumerate(leaves):
        yield f",{leaf}" if number else leaf


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()
