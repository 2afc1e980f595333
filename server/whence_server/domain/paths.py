"""Paths whose bytes are not UTF-8: as text for people, and as bytes for protobuf messages."""

import os
from pathlib import Path


def format_path(path: Path | str) -> str:
    r"""Return a path as text, with `\xNN` for each byte that is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def get_undecodable_bytes(path: Path | str) -> bytes:
    """Return the path's bytes if they are not UTF-8, else b""."""
    octets = os.fsencode(path)
    try:
        octets.decode()
    except UnicodeDecodeError:
        return octets
    return b""
