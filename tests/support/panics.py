"""A panic of a library that is written in Rust, as it reaches Python."""

import json

from tokenizers import Tokenizer
from tokenizers.models import BPE

BAD_NORMALIZER = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
"""Part of a tokenizer.json on which the library panics."""


def make_panic() -> BaseException:
    """Return a panic that the library has raised."""
    changes = {"normalizer": BAD_NORMALIZER}
    content = json.dumps(json.loads(Tokenizer(BPE({}, [])).to_str()) | changes)
    try:
        Tokenizer.from_str(content)
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return error
    raise AssertionError("the library did not panic")
