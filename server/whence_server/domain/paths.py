"""Paths whose bytes are not UTF-8: on a line for people, and in messages that hold UTF-8 alone."""

import os
from pathlib import Path


def format_path(path: Path | str) -> str:
    r"""A path as text: each byte that is not UTF-8 as `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def get_undecodable_bytes(path: Path | str) -> bytes:
    """The path's own bytes where they are not UTF-8; nothing for all other paths."""
    octets = os.fsencode(path)
    try:
        octets.decode()
    except UnicodeDecodeError:
        return octets
    return b""
