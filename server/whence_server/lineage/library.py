"""Training runs that the server knows, from records beside its model and in given directories."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from whence_server.domain.errors import LineageError, TrainingRunNotFoundError
from whence_server.domain.model import ModelInfo, NamedAdapter, TrainingRunRef
from whence_server.lineage.adapter_linking import link_adapter
from whence_server.lineage.linking import link
from whence_server.lineage.places import find_records_near
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.run import TrainingRun

_log = logging.getLogger(__name__)

T = TypeVar("T")

_DEPTH = 2
"""Levels of folders below a given directory that are searched for records."""


class _Version(NamedTuple):
    """File attributes by which a write to a file, or its replacement, is detected."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    """Time of the last status change, which no program can set."""

    def is_replaced_by(self, other: "_Version") -> bool:
        """Return whether the change is more than an append."""
        return (self.device, self.inode) != other[:2] or other.size_bytes <= self.size_bytes


class _ReadRecord(NamedTuple):
    """A record as it was last read; `run` is None if it could not be read."""

    version: _Version
    run: TrainingRun | None


class RunLibrary:
    """Index of training runs: reads each record once, and afterwards only its new entries.

    All reading happens in one thread, so that runs need no locks and the event loop does not wait
    for the disk. A record that is not intact is named in the log and left out.

    Args:
        directories: directories to search for records, down to `_DEPTH` levels below.
        model: the served model's directory; a name that is no directory is not searched.
    """

    def __init__(self, directories: Sequence[Path] = (), model: str = "") -> None:
        self._directories = tuple(directories)
        self._model = Path(model) if model else None
        self._adapters: list[Path] = []
        """Directories of the model's adapters, known once it is loaded."""
        self._known: dict[Path, _ReadRecord] = {}
        self._runs: dict[str, TrainingRun] = {}
        self._unreadable: set[Path] = set()
        """Directories that could not be read and that the log has named."""
        self._thread = ThreadPoolExecutor(1, "lineage")
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to read the records, before the first query."""
        self._thread.submit(self._scan)

    async def query_all(self, ask: Callable[[list[TrainingRun]], T]) -> T:
        """Call `ask` with all runs, newest first, in the library's thread; return its result."""
        return await self._run_in_thread(lambda: ask(self._scan()))

    async def query(self, training_run_id: str, ask: Callable[[TrainingRun], T]) -> T:
        """Call `ask` with one run in the library's thread; return its result.

        Raises:
            TrainingRunNotFoundError: there is no run with this id, or its record is not intact.
        """
        return await self._run_in_thread(lambda: ask(self._find(training_run_id)))

    async def link(self, model: ModelInfo) -> TrainingRunRef | None:
        """Return the run that made a loaded model, found by its digests; None if there is none."""
        return await self._run_in_thread(partial(self._link, model))

    async def link_adapters(self, model: ModelInfo) -> tuple[NamedAdapter, ...]:
        """Return a model's adapters, each with the run that made it if that is known.

        Raises:
            ConfigurationError: an adapter was trained on other weights than the model's.
        """
        return await self._run_in_thread(partial(self._link_adapters, model))

    def close(self) -> None:
        """Stop the thread without waiting for its current work."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run_in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _link(self, model: ModelInfo) -> TrainingRunRef | None:
        if model.directory:
            self._model = Path(model.directory)
        runs = self._scan()
        beside = set(_find_records_beside(self._model))
        return link(model, runs, [run for run in runs if run.path in beside])

    def _link_adapters(self, model: ModelInfo) -> tuple[NamedAdapter, ...]:
        self._adapters = [Path(adapter.directory) for adapter in model.adapters]
        runs = self._scan() if model.adapters else []
        return tuple(
            replace(adapter, training_run=link_adapter(model, adapter, runs))
            for adapter in model.adapters
        )

    def _find(self, training_run_id: str) -> TrainingRun:
        run = self._runs.get(training_run_id)
        if run is None or self._refresh_run(run.path) is not run:
            self._scan()
            run = self._runs.get(training_run_id)
        if run is None:
            raise TrainingRunNotFoundError(training_run_id)
        return run

    def _scan(self) -> list[TrainingRun]:
        paths = dict.fromkeys(
            path
            for directory in (self._model, *self._adapters)
            for path in _find_records_beside(directory)
        )
        for directory in self._directories:
            paths |= dict.fromkeys(self._find_records_below(directory, _DEPTH))
        found: dict[str, TrainingRun] = {}
        for path in paths:
            run = self._refresh_run(path)
            # Models that are saved elsewhere have copies of the record; the original is longer.
            if run is not None and (
                run.id not in found or _rank_copy(run) > _rank_copy(found[run.id])
            ):
                found[run.id] = run
        for gone in self._known.keys() - paths.keys():
            del self._known[gone]
        self._runs = found
        newest_first = sorted(found.values(), key=lambda run: run.id)
        newest_first.sort(key=lambda run: run.started.start_time.ToNanoseconds(), reverse=True)
        return newest_first

    def _refresh_run(self, path: Path) -> TrainingRun | None:
        """Return the run of a record as it is now; None if the record is missing or not intact."""
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
            _log.warning("the training run of a damaged record is left out: %s", error)
        self._known[path] = _ReadRecord(version, run)
        return run

    def _find_records_below(self, directory: Path, depth: int) -> Iterator[Path]:
        """Yield every record in a directory and down to `depth` levels below it."""
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
            # The record may be a symbolic link: checkpoints lie beside the link, not its target.
            yield directory.resolve() / RECORD_NAME
        for folder in folders if depth else ():
            yield from self._find_records_below(Path(folder), depth - 1)


def _rank_copy(run: TrainingRun) -> tuple[int, int]:
    """Return the rank of a copy of a record: its length, then its checkpoints that are there."""
    directory = run.path.parent
    there = sum((directory / checkpoint.path).is_dir() for checkpoint in run.checkpoints)
    return run.num_entries, there


def _find_records_beside(model: Path | None) -> Iterator[Path]:
    """Yield the records in a model's directory and up to two levels above it."""
    if model is None or not model.is_dir():
        return
    yield from find_records_near(model.resolve())


def _may_hold_runs(name: str) -> bool:
    return not name.startswith(".") and name != "checkpoints" and not name.startswith("checkpoint-")
