"""Choice of the weights that a server verifies and explains generations with."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.analysis.host import AnalysisHost
from whence_server.analysis.setup import AnalysisSetup
from whence_server.config import ServeConfig
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.supervisor import EngineSupervisor
from whence_server.journal.journal import Journal
from whence_server.lineage.emergence import EmergenceTracer
from whence_server.rpc import explain_servicer, verification_servicer
from whence_server.rpc.calls import Method
from whence_server.rpc.explain_servicer import ExplainServicer
from whence_server.rpc.verification_servicer import VerificationServicer


class Analyses(NamedTuple):
    """Owners of the one analysis process.

    Attributes:
        host: verifies generations, and explains outputs.
        tracer: traces the emergence of texts.
    """

    host: AnalysisHost
    tracer: EmergenceTracer

    def list_services(
        self,
        journal: Journal,
        closing: asyncio.Event,
        count_running: Callable[[], int],
        redact: Callable[[str], str],
    ) -> dict[str, list[Method[Any]]]:
        """Return the methods of the services that compute in the process, by service.

        Args:
            journal: the records.
            closing: set when the server closes.
            count_running: returns the number of generations that need the cores.
            redact: returns a text as it is stored.
        """
        verifying = VerificationServicer(journal, self.host, closing)
        explaining = ExplainServicer(journal, self.host, closing, count_running, redact)
        return {
            verification_servicer.SERVICE: verifying.list_methods(),
            explain_servicer.SERVICE: explaining.list_methods(),
        }

    async def close(self) -> None:
        """End the process; cancel every call that uses it first."""
        await self.tracer.close()
        await self.host.close()


def open_analyses(settings: ServeConfig, engine: object) -> Analyses:
    """Return the owners of the analysis process, which starts with the first call."""
    host = AnalysisHost(lambda: _make_setup(settings, engine))
    return Analyses(host, EmergenceTracer(place=host))


def _make_setup(settings: ServeConfig, engine: object) -> AnalysisSetup | None:
    """Return the model of the server's own engine, or the files that its upstream serves."""
    if isinstance(engine, EngineSupervisor):
        options = engine.options
    elif settings.upstream_weights is not None:
        options = make_options(settings.upstream_weights, settings.data_dir)
    else:
        return None
    # The other half of the cores is left to the server.
    num_threads = max(1, len(os.sched_getaffinity(0)) // 2)
    return AnalysisSetup(options, str(settings.data_dir / "noise.json"), num_threads)


def make_options(model: Path, cache: Path | None) -> EngineOptions:
    """Return options for a model that no engine of this server serves.

    Args:
        model: the model's directory or GGUF file.
        cache: directory that keeps digests and findings; None to compute them every time.
    """
    return EngineOptions(
        model=str(model),
        model_name="",
        dtype="auto",
        device="cpu",
        num_threads=0,
        max_batch_size=64,
        max_cache_tokens=0,
        prefill_chunk_tokens=512,
        trust_remote_code=False,
        log_level="warning",
        digest_cache="" if cache is None else str(cache / "digests.json"),
        findings_cache="" if cache is None else str(cache / "findings.json"),
    )
