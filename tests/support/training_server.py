"""TrainingService alone on a real socket in this process, without a model."""

import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from lineage_records import loaded_model

from whence_server.domain.errors import WhenceError
from whence_server.lineage.emergence import EmergenceTracer
from whence_server.lineage.library import RunLibrary
from whence_server.rpc import training_servicer
from whence_server.rpc.calls import CallLog
from whence_server.rpc.server import ServerOptions, build_server
from whence_server.rpc.serving import Serving
from whence_server.rpc.training_servicer import TrainingServicer


class CountingServing(Serving):
    """Served model that counts the calls that it refused, because it was not loaded."""

    num_refused = 0

    def make_missing_error(self) -> WhenceError:
        """Return the error of a call that needs the model."""
        self.num_refused += 1
        return super().make_missing_error()


class TrainingServer:
    """Listening server.

    Attributes:
        target: address for clients.
        serving: the served model; none until `load`.
        library: the runs that the server knows.
    """

    def __init__(self, library: RunLibrary, target: str, closing: asyncio.Event) -> None:
        self.library = library
        self.target = target
        self.closing = closing
        self.serving = CountingServing("m", None)  # type: ignore[arg-type]  # no generation is asked for

    async def load(self, directory: Path, **fields: object) -> None:
        """Serve a model from a directory, linked to the run that made it."""
        model = loaded_model(directory, **fields)
        run = await self.library.link(model)
        self.serving.model = dataclasses.replace(model, training_run=run)


@asynccontextmanager
async def training_server(
    *directories: Path,
    emergence: Sequence[str] = (sys.executable, "-c", "raise SystemExit(1)"),
    listen: str = "127.0.0.1:0",
    progress_interval_s: float = 10.0,
) -> AsyncIterator[TrainingServer]:
    """Serve the runs below the directories until the block is left."""
    library = RunLibrary(directories)
    server = TrainingServer(library, "", asyncio.Event())
    tracer = EmergenceTracer(emergence)
    servicer = TrainingServicer(library, server.serving, tracer, server.closing)
    services = {training_servicer.SERVICE: servicer.list_methods()}
    options = ServerOptions((listen,), progress_interval_s=progress_interval_s)
    rpc = await build_server(options, services, CallLog(lambda call: None))
    await rpc.server.start()
    (server.target,) = rpc.targets
    try:
        yield server
    finally:
        server.closing.set()
        await rpc.server.stop(2.0)
        await tracer.close()
        library.close()
