"""Comparison of signed statements with the entries on record that they are about.

A statement's leaves are salted with a secret that its FINISHED entry holds, so that the tree is
computed when the walk over the chain has come to the end of a generation. A leaf of the
transparency log covers the statement alone: with this comparison it covers every entry.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from whence.proof.envelope import STATEMENT_TYPE, parse_envelope
from whence.proof.faults import ProofError
from whence.proof.leaves import derive_salt, hash_entry
from whence.proof.merkle_tree import Frontier
from whence.proof.predicate import describe_finish
from whence.proof.statement import Statement, parse_statement
from whence.v1.generation_pb2 import GenerationFinished
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.chain import ChainRow
from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.sealing.data_key import DataKey
from whence_server.journal.sealing.stored_form import is_sealed, peek_key_id

_PAGE = 500
_LEAVES = f"""
    SELECT position, "offset", kind, coalesce(payload, x'') FROM entries
    WHERE writer = ? AND generation = ? AND "offset" > ?
        AND kind BETWEEN {EntryKind.STARTED:d} AND {EntryKind.BEAM_ROUND:d}
    ORDER BY "offset" LIMIT {_PAGE}
"""  # noqa: S608  # constants only
_ID = """
    SELECT CAST(generation_id AS BLOB) FROM generations WHERE writer = ? AND started_position = ?
"""
_START = "SELECT payload FROM entries WHERE writer = ? AND position = ?"
_TREE_TABLES = "SELECT 1 FROM sqlite_schema WHERE name = 'tree_leaves'"
_LAST_LEAF = """
    SELECT count(*), (SELECT coalesce(max(position), 0) FROM tree_leaves WHERE writer = ?) FROM tree
"""
_LEAF = "SELECT digest FROM tree_leaves WHERE writer = ? AND position = ?"


class StatementCheck:
    """Comparison of the statements of ended generations with their entries.

    Call `begin` before each log, `take` with all its entries in the chain's order, `check` for
    each end that was decrypted, then `end`.

    Args:
        connection: reads the database.
        report: takes the findings.
    """

    def __init__(self, connection: Any, report: VerifyReport) -> None:
        self._connection = connection
        self._report = report
        self._writer = 1
        self._last_leaf: int | None = None
        """Position of the log's last end that has a leaf; None without a transparency log."""
        self._num_unlogged = 0

    def begin(self, writer: int) -> None:
        """Begin with a log of the journal."""
        self._writer = writer
        self._last_leaf = None
        if self._connection.execute(_TREE_TABLES).fetchall():
            ((has_tree, last),) = self._connection.execute(_LAST_LEAF, (writer,)).fetchall()
            self._last_leaf = last if has_tree else None

    def take(self, rows: list[ChainRow]) -> None:
        """Check the ends in clear among some entries."""
        for row in rows:
            if row.kind != EntryKind.FINISHED or not row.payload:
                continue
            if not is_sealed(row.payload):
                self.check(row, row.payload)
            elif not self._is_start_sealed(row.generation):
                detail = f"entry {row.position}, its end, is no message, and its start is in clear"
                self._add(row, detail)

    def check(self, row: ChainRow, finished: bytes, key: DataKey | None = None) -> None:
        """Check the statement of a generation, if it has one.

        Args:
            row: its FINISHED entry.
            finished: the entry's message, decrypted.
            key: key of the generation; None if it is in clear.
        """
        try:
            message = GenerationFinished.FromString(finished)
        except DecodeError:
            return  # The comparison of the columns reports it.
        if not message.statement.envelope:
            return
        try:
            self._compare(row, message, key)
        except (ProofError, ValueError) as error:
            self._add(row, f"its signed statement cannot be compared: {error}")
        self._compare_leaf(row, message.statement.envelope, is_sealed=key is not None)

    def end(self) -> None:
        """Note the signed generations that the transparency log has not taken."""
        if self._num_unlogged:
            self._report.notes.append(
                f"{self._num_unlogged} signed generations are not in the transparency log: they "
                "ended after its last entry. A server that stops in order leaves none, unless its "
                "log is off"
            )

    def _compare(self, row: ChainRow, message: GenerationFinished, key: DataKey | None) -> None:
        envelope = parse_envelope(message.statement.envelope, STATEMENT_TYPE, "the envelope")
        statement = parse_statement(envelope.payload)
        generation_id = self._find_id(row)
        if statement.generation_id != generation_id:
            self._add(row, f"its signed statement is about generation {statement.generation_id}")
        frontier = Frontier()
        for entry in self._read_leaves(row.generation, generation_id):
            payload = entry.payload if key is None else key.open_entry(entry)
            salt = derive_salt(message.statement.leaf_secret, frontier.size)
            frontier.add(hash_entry(salt, entry.kind, payload))
        if (frontier.size, frontier.root) != (statement.num_leaves, statement.root):
            self._add(
                row,
                "its entries on record are not those of its signed statement: the statement is "
                f"about {statement.num_leaves} entries with root {statement.root.hex()[:16]}, and "
                f"{frontier.size} with root {frontier.root.hex()[:16]} are on record",
            )
        self._compare_end(row, message, statement)

    def _compare_end(
        self, row: ChainRow, message: GenerationFinished, statement: Statement
    ) -> None:
        for name, implied in describe_finish(message).items():
            if statement.predicate.get(name) != implied:
                self._add(row, f"its end on record differs from its signed statement's {name}")

    def _read_leaves(self, generation: int, generation_id: str) -> Iterator[Entry]:
        offset = 0
        place = self._writer, generation
        while rows := self._connection.execute(_LEAVES, (*place, offset)).fetchall():
            for position, offset, kind, payload in rows:
                yield Entry(position, generation_id, offset, EntryKind(kind), bytes(payload))

    def _compare_leaf(self, row: ChainRow, envelope: bytes, *, is_sealed: bool) -> None:
        """Compare an end with the transparency log; `verify_tree` does it for those in clear."""
        if self._last_leaf is None:
            return
        if row.position > self._last_leaf:
            self._num_unlogged += 1
            return
        if not is_sealed:
            return
        digest = hashlib.sha256(envelope).digest()
        leaf = self._connection.execute(_LEAF, (self._writer, row.position)).fetchall()
        if not leaf:
            self._add(row, "its signed statement is not in the transparency log")
        elif bytes(leaf[0][0]) != digest:
            self._add(row, "the transparency log has another statement at its place")

    def _is_start_sealed(self, generation: int) -> bool:
        rows = self._connection.execute(_START, (self._writer, generation)).fetchall()
        return bool(rows and rows[0][0] and peek_key_id(bytes(rows[0][0])))

    def _find_id(self, row: ChainRow) -> str:
        rows = self._connection.execute(_ID, (self._writer, row.generation)).fetchall()
        return bytes(rows[0][0]).decode(errors="replace") if rows else ""

    def _add(self, row: ChainRow, detail: str) -> None:
        name = self._find_id(row) or f"the generation that ends at entry {row.position}"
        self._report.add(Finding("statements", name, detail=detail))
