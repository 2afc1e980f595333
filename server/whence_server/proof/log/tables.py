"""Reading and writing of the transparency log's tables, in the SQL of both databases.

Each function takes a connection of the journal's database (`Store.change_tree`, `read_tree`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from whence.proof.merkle_tree import compute_root, hash_leaf
from whence_server.domain.errors import TransparencyLogDamagedError
from whence_server.proof.log.tree import TILE_HEIGHT, TILE_WIDTH, TreeReader

_ID = 1


class Leaf(NamedTuple):
    """One entry of the log."""

    digest: bytes
    """SHA-256 of a statement's envelope, 32 bytes."""
    writer: int
    """Number of the journal's log with the generation."""
    position: int
    """Position of its FINISHED entry."""


class TreeState(NamedTuple):
    """Identity and size of the log."""

    origin: str
    verifier_key: str
    size: int


class StoredCheckpoint(NamedTuple):
    """A checkpoint of the log."""

    size: int
    note: bytes
    published: bytes | None
    """The note with its cosignatures; None while too few witnesses have cosigned."""


def read_state(connection: Any) -> TreeState | None:
    """Return the log's state; None before the first start."""
    rows = connection.execute("SELECT origin, verifier_key, size FROM tree").fetchall()
    if not rows:
        return None
    ((origin, verifier_key, size),) = rows
    return TreeState(bytes(origin).decode(), bytes(verifier_key).decode(), size)


def begin_tree(connection: Any, origin: str, verifier_key: str) -> TreeState:
    """Store the log's identity if it has none yet; return its state.

    Raises:
        TransparencyLogDamagedError: there are entries of a log whose identity is lost.
    """
    if read_state(connection) is None and (
        connection.execute("SELECT 1 FROM tree_leaves LIMIT 1").fetchall()
    ):
        raise TransparencyLogDamagedError(
            "the table tree has no row, and the table tree_leaves has entries of its log: restore "
            "the journal from a backup"
        )
    connection.execute(
        "INSERT INTO tree (id, origin, verifier_key, size) VALUES (?, ?, ?, 0) "
        "ON CONFLICT (id) DO NOTHING",
        (_ID, origin.encode(), verifier_key.encode()),
    )
    state = read_state(connection)
    if state is None:
        raise TransparencyLogDamagedError("the table tree has no row")
    return state


def lock_size(connection: Any) -> int:
    """Return the number of leaves; no other server changes the log before the transaction ends."""
    connection.execute("UPDATE tree SET size = size WHERE id = ?", (_ID,))
    ((size,),) = connection.execute("SELECT size FROM tree WHERE id = ?", (_ID,)).fetchall()
    return int(size)


def find_last_position(connection: Any, writer: int) -> int:
    """Return the last position of a log of the journal whose statement has a leaf; 0 for none."""
    ((position,),) = connection.execute(
        "SELECT coalesce(max(position), 0) FROM tree_leaves WHERE writer = ?", (writer,)
    ).fetchall()
    return int(position)


def append_leaves(connection: Any, size: int, leaves: Sequence[Leaf]) -> int:
    """Append leaves to the locked log; return its new size."""
    connection.executemany(
        "INSERT INTO tree_leaves (number, digest, writer, position) VALUES (?, ?, ?, ?)",
        [(size + place, *leaf) for place, leaf in enumerate(leaves)],
    )
    new_size, level = size + len(leaves), 0
    while (end := new_size >> (level + 1) * TILE_HEIGHT) > 0:
        begin = size >> (level + 1) * TILE_HEIGHT
        connection.executemany(
            "INSERT INTO tree_nodes (level, number, hash) VALUES (?, ?, ?)",
            [
                (level + 1, number, compute_root(read_tile(connection, level, number, TILE_WIDTH)))
                for number in range(begin, end)
            ],
        )
        level += 1
    connection.execute("UPDATE tree SET size = ? WHERE id = ?", (new_size, _ID))
    return new_size


def read_tile(connection: Any, level: int, number: int, width: int) -> list[bytes]:
    """Return the hashes of a tile.

    Raises:
        TransparencyLogDamagedError: nodes are missing.
    """
    if level == 0:
        return [hash_leaf(digest) for digest in read_digests(connection, number, width)]
    begin = number * TILE_WIDTH
    rows = connection.execute(
        "SELECT hash FROM tree_nodes WHERE level = ? AND number >= ? AND number < ? "
        "ORDER BY number",
        (level, begin, begin + width),
    ).fetchall()
    return _require(
        [bytes(row[0]) for row in rows], width, f"nodes of tile {number}, level {level}"
    )


def read_digests(connection: Any, number: int, width: int) -> list[bytes]:
    """Return the entries of a tile of level 0.

    Raises:
        TransparencyLogDamagedError: entries are missing.
    """
    begin = number * TILE_WIDTH
    rows = connection.execute(
        "SELECT digest FROM tree_leaves WHERE number >= ? AND number < ? ORDER BY number",
        (begin, begin + width),
    ).fetchall()
    return _require([bytes(row[0]) for row in rows], width, f"entries of tile {number}")


def _require(found: list[bytes], width: int, what: str) -> list[bytes]:
    if len(found) != width:
        raise TransparencyLogDamagedError(
            f"the transparency log has {len(found)} {what}, and should have {width}"
        )
    return found


def make_reader(connection: Any, size: int) -> TreeReader:
    """Return a reader of the tree as it was at a size."""
    return TreeReader(lambda *tile: read_tile(connection, *tile), size)


def find_leaf(connection: Any, digest: bytes) -> int | None:
    """Return the number of the first leaf with a digest; None if there is none."""
    rows = connection.execute(
        "SELECT min(number) FROM tree_leaves WHERE digest = ?", (digest,)
    ).fetchall()
    return None if not rows or rows[0][0] is None else int(rows[0][0])


def add_checkpoint(connection: Any, size: int, note: bytes, published: bytes | None) -> None:
    """Store a checkpoint; one of the same size keeps its cosignatures."""
    connection.execute(
        "INSERT INTO tree_checkpoints (size, note, published) VALUES (?, ?, ?) "
        "ON CONFLICT (size) DO NOTHING",
        (size, note, published),
    )
    # The publisher remembers the one that it has in hand; the published one is still shown.
    connection.execute("DELETE FROM tree_checkpoints WHERE size < ? AND published IS NULL", (size,))
    if published is not None:
        _forget_before(connection, size)


def publish_checkpoint(connection: Any, size: int, published: bytes) -> None:
    """Store a checkpoint with its cosignatures, and forget older ones.

    Nothing changes if a newer one is published: what is shown never gets smaller.
    """
    lock_size(connection)
    newest = find_newest_checkpoint(connection, published=True)
    if newest is not None and newest.size > size:
        return
    # A newer checkpoint that waits for its cosignatures may have taken the place of this one.
    connection.execute(
        "INSERT INTO tree_checkpoints (size, note, published) VALUES (?, ?, ?) "
        "ON CONFLICT (size) DO UPDATE SET published = excluded.published",
        (size, published, published),
    )
    _forget_before(connection, size)


def _forget_before(connection: Any, size: int) -> None:
    connection.execute("DELETE FROM tree_checkpoints WHERE size < ?", (size,))


def find_newest_checkpoint(connection: Any, *, published: bool) -> StoredCheckpoint | None:
    """Return the newest checkpoint, or the newest published one; None without one."""
    condition = "WHERE published IS NOT NULL" if published else ""
    rows = connection.execute(
        f"SELECT size, note, published FROM tree_checkpoints {condition} "  # noqa: S608
        "ORDER BY size DESC LIMIT 1"
    ).fetchall()
    if not rows:
        return None
    ((size, note, cosigned),) = rows
    return StoredCheckpoint(size, bytes(note), None if cosigned is None else bytes(cosigned))
