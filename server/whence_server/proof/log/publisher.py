"""Publisher: has checkpoints cosigned by witnesses, then shows them."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from whence_server.domain.errors import WhenceError
from whence_server.proof.log import tables
from whence_server.proof.log.cosigner import Cosigner
from whence_server.proof.log.files import LogDirectory
from whence_server.proof.log.sequencer import TreeAccess
from whence_server.proof.log.tiles import Tile, encode_entries, list_tiles
from whence_server.proof.log.witnesses import Witness

_log = logging.getLogger(__name__)

_RETRY_S = 1.0


@dataclass(slots=True)
class PublisherStats:
    """Figures of the publication.

    Attributes:
        size: number of entries in the published checkpoint.
        waiting_since: monotonic time since when a newer checkpoint waits; None if none does.
        failures: number of times that a witness did not cosign, by its name.
    """

    size: int = 0
    waiting_since: float | None = None
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def delay_s(self) -> float:
        """Seconds for which a checkpoint has waited to be published; 0 if none waits."""
        return 0.0 if self.waiting_since is None else time.monotonic() - self.waiting_since


class Publisher:
    """Task that publishes checkpoints, each once enough witnesses have cosigned it.

    Args:
        tree: the log's tables.
        witnesses: witnesses that are asked.
        quorum: number of them that must have cosigned a checkpoint before it is published.
        directory: files of the log; None for none.

    Attributes:
        stats: figures for the metrics.
    """

    def __init__(
        self,
        tree: TreeAccess,
        witnesses: Sequence[Witness],
        quorum: int,
        directory: LogDirectory | None,
    ) -> None:
        self._tree = tree
        self._directory = directory
        self._shown_size = 0
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.stats = PublisherStats(failures={it.key.name: 0 for it in witnesses})
        self._cosigner = Cosigner(tree, witnesses, quorum, self.stats.failures, self.wake)

    def start(self, shown_size: int) -> None:
        """Start in the running event loop; the directory shows a log of this size."""
        self._shown_size = shown_size
        self._cosigner.start()
        self._due.set()
        self._task = asyncio.create_task(self._run(), name="log-publisher")

    def wake(self) -> None:
        """Note that there is a new checkpoint."""
        self._due.set()

    async def close(self) -> None:
        """Publish what needs no waiting, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._cosigner.close()
        if self._task is not None:
            with suppress(WhenceError, OSError):
                await self._show()

    async def _run(self) -> None:
        while True:
            self._due.clear()
            try:
                is_whole = await self._publish()
            except Exception as error:  # noqa: BLE001 - it is reported, and publishing goes on
                _log.error("the transparency log cannot be published: %s", error)
                is_whole = False
            with suppress(TimeoutError):
                async with asyncio.timeout(None if is_whole else _RETRY_S):
                    await self._due.wait()

    async def _publish(self) -> bool:
        """Have a checkpoint cosigned and show it; return False to try again later."""
        newest = await self._tree.read(
            lambda it: tables.find_newest_checkpoint(it, published=False)
        )
        if newest is not None and newest.published is None and self.stats.waiting_since is None:
            self.stats.waiting_since = time.monotonic()
        is_whole = newest is None or await self._cosigner.cosign(newest)
        await self._show()
        return is_whole

    async def _show(self) -> None:
        """Write the newest published checkpoint and its tiles to the directory."""
        published = await self._tree.read(
            lambda it: tables.find_newest_checkpoint(it, published=True)
        )
        if published is None or published.published is None:
            return
        if published.size > self.stats.size:
            self.stats.size, self.stats.waiting_since = published.size, None
        if self._directory is None:
            return
        for tile in list_tiles(min(self._shown_size, published.size), published.size):
            content = await read_tile_content(self._tree, tile)
            await asyncio.to_thread(self._directory.write, tile, content)
        await asyncio.to_thread(self._directory.write_checkpoint, published.published)
        self._shown_size = published.size


async def read_tile_content(tree: TreeAccess, tile: Tile) -> bytes:
    """Return the bytes of a tile, which the log's size covers."""

    def read(connection: Any) -> bytes:
        if tile.level < 0:
            return encode_entries(tables.read_digests(connection, tile.number, tile.width))
        return b"".join(tables.read_tile(connection, tile.level, tile.number, tile.width))

    return await tree.read(read)
