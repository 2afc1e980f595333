"""Choice of the weights that a server verifies generations with."""

import os
from pathlib import Path
from typing import NamedTuple

from whence_server.analysis.host import AnalysisHost
from whence_server.analysis.setup import AnalysisSetup
from whence_server.config import ServeConfig
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.supervisor import EngineSupervisor
from whence_server.lineage.emergence import EmergenceTracer


class Analyses(NamedTuple):
    """Owners of the one analysis process.

    Attributes:
        host: verifies generations.
        tracer: traces the emergence of texts.
    """

    host: AnalysisHost
    tracer: EmergenceTracer

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
