"""Cost of the transparency log: appending with a checkpoint, and proving, at 100,000 entries."""

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whence.proof.notes import NoteSigner
from whence_server.journal.journal import Journal
from whence_server.proof.log import tables
from whence_server.proof.log.sequencer import sign_state
from whence_server.proof.log.tables import Leaf

_BATCH, _BATCHES, _SINGLES = 1_000, 100, 200


class Measured:
    """A log that grows by random digests; every method returns milliseconds."""

    def __init__(self, journal: Journal, signer: NoteSigner) -> None:
        self.size = 0
        self._tree = journal.tree
        self._signer = signer

    async def append(self, number: int) -> float:
        """Append entries and sign a checkpoint, in one transaction that reaches the disk."""
        leaves = [Leaf(os.urandom(32), 1, self.size + place + 1) for place in range(number)]

        def change(connection: object) -> None:
            size = tables.append_leaves(connection, tables.lock_size(connection), leaves)
            root = tables.make_reader(connection, size).compute_root()
            note = sign_state(self._signer, size, root)
            tables.add_checkpoint(connection, size, note, note)

        began = time.perf_counter()
        await self._tree.change(change)
        self.size += number
        return (time.perf_counter() - began) * 1e3

    async def prove(self, index: int) -> float:
        """Prove that an entry is in the log."""
        size, began = self.size, time.perf_counter()
        await self._tree.read(lambda it: tables.make_reader(it, size).prove_inclusion(index))
        return (time.perf_counter() - began) * 1e3


async def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        journal = await Journal.open(Path(folder))
        signer = NoteSigner("example.com/log", Ed25519PrivateKey.generate())
        await journal.tree.change(
            lambda it: tables.begin_tree(it, signer.key.name, str(signer.key))
        )
        log = Measured(journal, signer)
        batches = [await log.append(_BATCH) for _ in range(_BATCHES)]
        singles = [await log.append(1) for _ in range(_SINGLES)]
        proofs = [await log.prove(index) for index in range(0, log.size, 997)]
        size = sum(path.stat().st_size for path in Path(folder).glob("journal.db*"))
        await journal.close()
    print(f"log of {log.size:,} entries, {size / log.size:.0f} bytes each")
    for name, times in (
        (f"{_BATCH:,} entries and a checkpoint", batches),
        ("1 entry and a checkpoint", singles),
        ("inclusion proof", proofs),
    ):
        print(f"{name}: median {statistics.median(times):.2f} ms, most {max(times):.2f} ms")


if __name__ == "__main__":
    asyncio.run(main())
