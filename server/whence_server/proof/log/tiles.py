"""Paths and bytes of a log that is published as tiles (C2SP tlog-tiles)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from whence.proof.merkle import MAX_TREE_SIZE
from whence_server.proof.log.tree import TILE_HEIGHT, TILE_WIDTH

CHECKPOINT = "checkpoint"
_ENTRIES = "entries"
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9]\d?)/"
    r"(?P<number>(?:x\d{3}/){0,6}\d{3})(?:\.p/(?P<width>[1-9]\d{0,2}))?"
)
_DIGITS = 3
_MAX_LEVEL = MAX_TREE_SIZE.bit_length() // TILE_HEIGHT


class Tile(NamedTuple):
    """A tile of hashes, or a bundle of entries."""

    level: int
    """Level of the hashes; -1 for the entries below level 0."""
    number: int
    width: int

    @property
    def path(self) -> str:
        """Path of the tile below that of the log."""
        digits = str(self.number)
        digits = digits.zfill(-(-len(digits) // _DIGITS) * _DIGITS)
        groups = [digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS)]
        number = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        level = _ENTRIES if self.level < 0 else self.level
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{number}{partial}"

    @property
    def end(self) -> int:
        """Size of a tree from which the tile can be read."""
        num_nodes = self.number * TILE_WIDTH + self.width
        return num_nodes << (max(self.level, 0) * TILE_HEIGHT)


def parse_path(path: str) -> Tile | None:
    """Return the tile at a path below that of the log; None if no tile has it."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    level = -1 if found["level"] == _ENTRIES else int(found["level"])
    number = int(found["number"].replace("x", "").replace("/", ""))
    tile = Tile(level, number, int(found["width"] or TILE_WIDTH))
    is_whole = found["width"] is not None and tile.width >= TILE_WIDTH
    # A number has one spelling, without leading groups of zeros.
    return None if level > _MAX_LEVEL or is_whole or tile.path != path else tile


def list_tiles(old_size: int, size: int) -> list[Tile]:
    """Return the tiles that a tree needs and that it did not have at its old size."""
    tiles: list[Tile] = []
    for level in (-1, *range(_MAX_LEVEL + 1)):
        shift = max(level, 0) * TILE_HEIGHT
        old_nodes, num_nodes = old_size >> shift, size >> shift
        if num_nodes == old_nodes:
            continue
        tiles += [
            Tile(level, number, min(TILE_WIDTH, num_nodes - number * TILE_WIDTH))
            for number in range(old_nodes // TILE_WIDTH, -(-num_nodes // TILE_WIDTH))
        ]
    return tiles


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """Return the bytes of a bundle of entries: each with its length in two bytes."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
