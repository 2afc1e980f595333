"""The training runs that this server knows: found beside models and where it was told to look."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from whence_server.domain.errors import LineageError, TrainingRunNotFoundError
from whence_server.domain.model import ModelInfo, TrainingRunRef
from whence_server.lineage.linking import link
from whence_server.lineage.places import records_near
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.run import TrainingRun

_log = logging.getLogger(__name__)

T = TypeVar("T")

_DEPTH = 2
"""How far below a directory of runs records are looked for."""


class _Version(NamedTuple):
    """What tells whether a file has been written to, or replaced."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    """Of the change of status, which no program can set."""

    def is_replaced_by(self, other: "_Version") -> bool:
        """Whether more happened than an entry's being appended."""
        return (self.device, self.inode) != other[:2] or other.size_bytes <= self.size_bytes


class _Known(NamedTuple):
    """A record as it was read last; no run where it could not be."""

    version: _Version
    run: TrainingRun | None


class RunLibrary:
    """Finds records and folds them, each once and then as far as it has grown.

    All of it happens in one thread of its own, so that runs need no locks and the event loop
    waits for no disk. A record that is not intact is named in the log and left out.

    Args:
        directories: searched for records, down to `_DEPTH` below.
        model: a served model's directory, or anything else, where nothing is looked for.
    """

    def __init__(self, directories: Sequence[Path] = (), model: str = "") -> None:
        self._directories = tuple(directories)
        self._model = Path(model) if model else None
        self._known: dict[Path, _Known] = {}
        self._runs: dict[str, TrainingRun] = {}
        self._unreadable: set[Path] = set()
        """Directories that the log has named."""
        self._thread = ThreadPoolExecutor(1, "lineage")
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to read the records, ahead of the first question."""
        self._thread.submit(self._scan)

    async def runs(self, ask: Callable[[list[TrainingRun]], T]) -> T:
        """What `ask` finds out about all runs, newest first."""
        return await self._in_thread(lambda: ask(self._scan()))

    async def run(self, training_run_id: str, ask: Callable[[TrainingRun], T]) -> T:
        """What `ask` finds out about one run.

        Raises:
            TrainingRunNotFoundError: there is none, or its record is not intact any more.
        """
        return await self._in_thread(lambda: ask(self._find(training_run_id)))

    async def link(self, model: ModelInfo) -> TrainingRunRef | None:
        """The run that made a loaded model, by its digests; the log says why there is none."""
        return await self._in_thread(partial(self._link, model))

    def close(self) -> None:
        """Let go of the thread; what it is at is left unfinished."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _link(self, model: ModelInfo) -> TrainingRunRef | None:
        if model.directory:
            self._model = Path(model.directory)
        runs = self._scan()
        beside = set(_beside(self._model))
        return link(model, runs, [run for run in runs if run.path in beside])

    def _find(self, training_run_id: str) -> TrainingRun:
        run = self._runs.get(training_run_id)
        if run is None or self._refreshed(run.path) is not run:
            self._scan()
            run = self._runs.get(training_run_id)
        if run is None:
            raise TrainingRunNotFoundError(training_run_id)
        return run

    def _scan(self) -> list[TrainingRun]:
        paths = dict.fromkeys(_beside(self._model))
        for directory in self._directories:
            paths |= dict.fromkeys(self._below(directory, _DEPTH))
        found: dict[str, TrainingRun] = {}
        for path in paths:
            run = self._refreshed(path)
            # A record is copied beside models that are saved elsewhere: the original goes on.
            if run is not None and (run.id not in found or _rank(run) > _rank(found[run.id])):
                found[run.id] = run
        for gone in self._known.keys() - paths.keys():
            del self._known[gone]
        self._runs = found
        newest_first = sorted(found.values(), key=lambda run: run.id)
        newest_first.sort(key=lambda run: run.started.start_time.ToNanoseconds(), reverse=True)
        return newest_first

    def _refreshed(self, path: Path) -> TrainingRun | None:
        """The run of a record as it is now; None where it is none, or is not intact."""
        try:
            status = path.stat()
        except OSError:
            return None
        version = _Version(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )
        known = self._known.get(path)
        if known is not None and known.version == version:
            return known.run
        run = None
        try:
            if known is None or known.run is None or known.version.is_replaced_by(version):
                run = TrainingRun.open(path, self._closed.is_set)
            else:
                run = known.run
                run.refresh(self._closed.is_set)
        except LineageError as error:
            run = None
            _log.warning("a training run is left out: %s", error)
        self._known[path] = _Known(version, run)
        return run

    def _below(self, directory: Path, depth: int) -> Iterator[Path]:
        """Every record in a directory, and so far below it."""
        try:
            with os.scandir(directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            folders = [e.path for e in found if e.is_dir() and _may_hold_runs(e.name)]
            has_record = any(e.name == RECORD_NAME and e.is_file() for e in found)
        except OSError as error:
            if directory not in self._unreadable:
                self._unreadable.add(directory)
                _log.warning(
                    "%s cannot be searched for training runs: %s", directory, error.strerror
                )
            return
        if has_record:
            # Checkpoints lie beside the record's name, not beside what it may be a link to.
            yield directory.resolve() / RECORD_NAME
        for folder in folders if depth else ():
            yield from self._below(Path(folder), depth - 1)


def _rank(run: TrainingRun) -> tuple[int, int]:
    """Of several copies of a record, the longest counts, then the one beside its checkpoints."""
    directory = run.path.parent
    there = sum((directory / checkpoint.path).is_dir() for checkpoint in run.checkpoints)
    return run.num_entries, there


def _beside(model: Path | None) -> Iterator[Path]:
    """Where a model's record may lie: with it, or up to two levels above."""
    if model is None or not model.is_dir():
        return
    yield from records_near(model.resolve())


def _may_hold_runs(name: str) -> bool:
    return not name.startswith(".") and name != "checkpoints" and not name.startswith("checkpoint-")
