"""Flags of `whence generate` that constrain the output."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from whence.generation import GeneratedSequence


def add_constraints(group: Any) -> None:
    """Add the flags that read a file; `--regex` is one of the plain options."""
    group.add_argument(
        "--json-schema",
        type=_read_schema,
        metavar="FILE_OR_TEXT",
        help="JSON Schema of the output: a file, or its text, which begins with {; {} for any JSON",
    )
    group.add_argument(
        "--grammar",
        type=_read_file,
        metavar="FILE",
        help="file with a context-free grammar of the output",
    )
    group.add_argument(
        "--grammar-syntax",
        choices=["lark", "ebnf"],
        help="syntax of --grammar: lark (default), or ebnf as llama.cpp writes it",
    )


def describe_incomplete(sequences: Iterable[GeneratedSequence]) -> Iterator[str]:
    """Yield a line for each sequence that ended before the constraint's text was complete."""
    for sequence in sequences:
        if sequence.constraint_complete is False:
            yield (
                f"warning: sequence {sequence.sequence_index} is cut off: it does not satisfy the "
                "constraint"
            )


def _read_schema(text: str) -> str:
    return text if text.lstrip().startswith("{") else _read_file(text)


def _read_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path!r} cannot be read: {error}") from None
