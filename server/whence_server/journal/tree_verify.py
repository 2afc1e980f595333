"""Verification of the transparency log's tables against the entries and known checkpoints."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from whence.proof.bundle_format import MAX_BYTES
from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.faults import ProofError
from whence.proof.log_growth import find_note
from whence.proof.merkle_tree import Frontier, compute_root, hash_leaf
from whence.proof.notes import NoteError, SignedNote, VerifierKey
from whence.v1.generation_pb2 import GenerationFinished
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import ConfigurationError
from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.origin import read_origin
from whence_server.journal.sealing.stored_form import is_sealed

_TILE_WIDTH = 256
_CHUNK = 1_024
_EXISTS = "SELECT 1 FROM sqlite_schema WHERE name = 'tree_leaves'"
_STATE = "SELECT origin, verifier_key, size FROM tree"
_LEAVES = """
    SELECT l.number, l.digest, l.writer, l.position, coalesce(e.kind, 0), coalesce(payload, x'')
    FROM tree_leaves l LEFT JOIN entries e ON e.writer = l.writer AND e.position = l.position
    WHERE l.number >= ? ORDER BY l.number LIMIT ?
"""
# Entries after the last leaf of their log have not been looked at yet.
_UNLOGGED = f"""
    SELECT e.writer, e.position, e.payload FROM entries e
    WHERE e.writer = ? AND e.position > ? AND e.kind = {EntryKind.FINISHED:d}
        AND e.payload IS NOT NULL
        AND e.position < (SELECT max(position) FROM tree_leaves m WHERE m.writer = e.writer)
        AND NOT EXISTS (SELECT 1 FROM tree_leaves l
            WHERE l.writer = e.writer AND l.position = e.position)
    ORDER BY e.position LIMIT {_CHUNK}
"""  # noqa: S608  # constants only
_NODES = "SELECT level, number, hash FROM tree_nodes ORDER BY level, number"
_CHECKPOINTS = "SELECT size, note, published FROM tree_checkpoints ORDER BY size"


class _Claim(NamedTuple):
    """A checkpoint that the tree must agree with."""

    table: str
    row: str
    checkpoint: Checkpoint


def read_checkpoints(paths: Iterable[Path]) -> list[bytes]:
    """Read checkpoints from files: signed notes, or bundles that have one.

    Raises:
        ConfigurationError: a file cannot be read, or is a bundle without a checkpoint.
    """
    return [_read_checkpoint(path) for path in paths]


def _read_checkpoint(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        return find_note(content)
    except OSError as error:
        raise ConfigurationError(f"--checkpoint {path} cannot be read: {error.strerror}") from None
    except ProofError as error:
        raise ConfigurationError(f"--checkpoint {path} is no checkpoint: {error}") from None


def verify_tree(connection: Any, report: VerifyReport, known: Sequence[bytes] = ()) -> None:
    """Add a finding for each fault of the transparency log.

    Args:
        connection: reads the database.
        report: takes the findings.
        known: checkpoints of the log that were kept elsewhere.

    Raises:
        ConfigurationError: a known checkpoint is malformed.
    """
    notes = [_parse_known(note) for note in known]
    exists = connection.execute(_EXISTS).fetchall()
    state = connection.execute(_STATE).fetchall() if exists else []
    if not state:
        _report_missing(report, notes)
        if exists:
            _check_empty(connection, report)
        return
    if len(state) > 1:
        report.add(Finding("tree", "", detail=f"it has {len(state)} rows, and a journal one log"))
    origin, key_text, size = state[0]
    name = bytes(origin).decode(errors="replace")
    try:
        key = VerifierKey.parse(bytes(key_text).decode(errors="replace"))
    except NoteError as error:
        report.add(Finding("tree", name, detail=str(error)))
        return
    if name != key.name:
        report.add(Finding("tree", name, "origin", name, key.name))
    claims = [*_check_stored(connection, report, key), *_check_known(report, notes, key)]
    walk = _Walk(connection, report, claims)
    walk.run()
    if walk.size != size:
        report.add(Finding("tree", key.name, "size", size, walk.size))
    _check_unlogged(connection, report)


def report_missing_log(report: VerifyReport, known: Sequence[bytes]) -> None:
    """Add a finding for each known checkpoint, because a journal has no transparency log.

    Raises:
        ConfigurationError: a known checkpoint is malformed.
    """
    _report_missing(report, [_parse_known(note) for note in known])


def _report_missing(report: VerifyReport, notes: Iterable[tuple[bytes, Checkpoint]]) -> None:
    for _, checkpoint in notes:
        detail = f"the journal has no log, and checkpoint {checkpoint.size} of one is known"
        report.add(Finding("transparency log", checkpoint.origin, detail=detail))


def _check_empty(connection: Any, report: VerifyReport) -> None:
    """Add a finding for each table that has rows of a log without identity."""
    for table in ("tree_leaves", "tree_nodes", "tree_checkpoints"):
        ((number,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()  # noqa: S608
        if number:
            detail = f"it has {number} rows, and the table tree, which names their log, has none"
            report.add(Finding(table, "", detail=detail))


def _parse_known(raw: bytes) -> tuple[bytes, Checkpoint]:
    try:
        return raw, Checkpoint.parse(SignedNote.parse(raw).text)
    except NoteError as error:
        raise ConfigurationError(f"--checkpoint: {error}") from None


def _check_stored(connection: Any, report: VerifyReport, key: VerifierKey) -> Iterator[_Claim]:
    for size, note, published in connection.execute(_CHECKPOINTS).fetchall():
        for raw in (note, published):
            if raw is None:
                continue
            try:
                found = verify_checkpoint(bytes(raw), key).checkpoint
            except NoteError as error:
                report.add(Finding("tree_checkpoints", str(size), detail=str(error)))
                continue
            if found.size != size:
                report.add(Finding("tree_checkpoints", str(size), "size", found.size, size))
            yield _Claim("tree_checkpoints", str(size), found)


def _check_known(
    report: VerifyReport, notes: Iterable[tuple[bytes, Checkpoint]], key: VerifierKey
) -> Iterator[_Claim]:
    for raw, checkpoint in notes:
        row = f"known checkpoint {checkpoint.size}"
        try:
            verify_checkpoint(raw, key)
        except NoteError as error:
            detail = f"it is not one of this journal's log: {error}"
            report.add(Finding("transparency log", row, detail=detail))
            continue
        yield _Claim("transparency log", row, checkpoint)


class _Walk:
    """Walk over all leaves, which computes the root at each size and the nodes above.

    Attributes:
        size: number of leaves.
    """

    def __init__(self, connection: Any, report: VerifyReport, claims: Iterable[_Claim]) -> None:
        self.size = 0
        self._connection = connection
        self._report = report
        self._claims: dict[int, list[_Claim]] = {}
        for claim in claims:
            self._claims.setdefault(claim.checkpoint.size, []).append(claim)
        self._frontier = Frontier()
        self._tile: list[bytes] = []
        self._nodes: list[list[bytes]] = [[]]
        self._origins: dict[int, int] = {}

    def run(self) -> None:
        """Walk, and compare."""
        self._compare_roots()
        while rows := self._connection.execute(_LEAVES, (self.size, _CHUNK)).fetchall():
            for number, digest, writer, position, kind, payload in rows:
                if number != self.size:
                    detail = f"entry {self.size} is missing"
                    self._report.add(Finding("tree_leaves", str(number), detail=detail))
                    return
                self._check_entry(number, bytes(digest), (writer, position), kind, bytes(payload))
                self._grow(hash_leaf(bytes(digest)))
        for size, claims in self._claims.items():
            for claim in claims if size > self.size else ():
                detail = (
                    f"the log had {size} entries, and {self.size} are left: the newest were cut off"
                )
                self._report.add(Finding(claim.table, claim.row, detail=detail))
        self._compare_nodes()

    def _grow(self, leaf_hash: bytes) -> None:
        self._frontier.add(leaf_hash)
        self.size += 1
        self._compare_roots()
        level, node = 0, leaf_hash
        while True:
            self._nodes[level].append(node)
            if len(self._nodes[level]) % _TILE_WIDTH:
                return
            node = compute_root(self._nodes[level][-_TILE_WIDTH:])
            if level == 0:
                self._nodes[0].clear()
            level += 1
            if level == len(self._nodes):
                self._nodes.append([])

    def _compare_roots(self) -> None:
        for claim in self._claims.get(self.size, ()):
            if claim.checkpoint.root != self._frontier.root:
                detail = f"the first {self.size} entries are others than those of the checkpoint"
                self._report.add(Finding(claim.table, claim.row, detail=detail))

    def _compare_nodes(self) -> None:
        expected = {
            (level, number): node
            for level, nodes in enumerate(self._nodes)
            if level > 0
            for number, node in enumerate(nodes)
        }
        rows = self._connection.execute(_NODES).fetchall()
        stored = {(level, number): bytes(node) for level, number, node in rows}
        for level, number in sorted(expected.keys() | stored.keys()):
            here, there = stored.get((level, number)), expected.get((level, number))
            if here != there:
                row = f"{number} of level {level}"
                self._report.add(Finding("tree_nodes", row, "hash", here, there))

    def _check_entry(
        self, number: int, digest: bytes, place: tuple[int, int], kind: int, payload: bytes
    ) -> None:
        """Compare a leaf with the FINISHED entry that it is about."""
        writer, position = place
        if kind == 0:
            if position > self._find_begin(writer):
                detail = f"its generation, which ended at entry {position}, is not in the journal"
                self._report.add(Finding("tree_leaves", str(number), detail=detail))
        elif kind != EntryKind.FINISHED:
            detail = f"entry {position} of the journal is not the end of a generation"
            self._report.add(Finding("tree_leaves", str(number), detail=detail))
        elif payload and not is_sealed(payload):
            expected = _find_digest(payload)
            if expected != digest:
                self._report.add(Finding("tree_leaves", str(number), "digest", digest, expected))

    def _find_begin(self, writer: int) -> int:
        """Return the position up to which retention has removed a log's entries."""
        if writer not in self._origins:
            origin = read_origin(self._connection, writer)
            self._origins[writer] = 0 if origin is None else origin.position
        return self._origins[writer]


def _check_unlogged(connection: Any, report: VerifyReport) -> None:
    """Add a finding for each signed generation that the log left out."""
    for (one,) in connection.execute("SELECT writer FROM writers ORDER BY writer").fetchall():
        after = 0
        while rows := connection.execute(_UNLOGGED, (one, after)).fetchall():
            for _, position, payload in rows:
                after = position
                if not is_sealed(bytes(payload)) and _find_digest(bytes(payload)) is not None:
                    detail = "the statement of the generation that ends here is not in the log"
                    report.add(Finding("entries", str(position), detail=detail))


def _find_digest(payload: bytes) -> bytes | None:
    """Return the digest of the statement in a FINISHED entry in clear; None without one."""
    try:
        envelope: bytes = GenerationFinished.FromString(payload).statement.envelope
    except DecodeError:
        return None
    return hashlib.sha256(envelope).digest() if envelope else None
