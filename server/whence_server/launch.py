"""Start of the server: the engine begins to load its model while the front is imported.

Importing the front takes most of a second, and importing torch and transformers takes three. The
engine's process is therefore started first, from as few modules as possible.
"""

import gc
import importlib.metadata
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server.config import ServeConfig
from whence_server.config.environment import read_kernel_variables
from whence_server.domain.model import StepKernels
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.code_cache import prepare_code_cache
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.supervisor import EngineSupervisor

if TYPE_CHECKING:
    from whence_server.engines.upstream.engine import UpstreamEngine
    from whence_server.engines.upstream.options import UpstreamOptions


async def serve(settings: ServeConfig) -> int:
    """Start the engine and the front, and serve; see `app.serve`."""
    if settings.record_only:
        from whence_server import app
        from whence_server.engines.absent import AbsentEngine

        return await app.serve(settings, AbsentEngine())
    if settings.upstream:
        from whence_server import app

        return await app.serve(settings, make_upstream_engine(settings))
    # Before the port opens: nobody waits for a mistyped path.
    weights.check_path(settings.model)
    engine = EngineSupervisor(make_engine_options(settings), settings.engine_stall_timeout)
    await engine.begin()
    try:
        # Collecting between would take a quarter of the time.
        gc.disable()
        from whence_server import app

        gc.freeze()
        gc.enable()
        return await app.serve(settings, engine)
    finally:
        await engine.stop()


def make_upstream_engine(settings: ServeConfig) -> "UpstreamEngine":
    """Return the upstream that the settings name, as an engine that has not started.

    Raises:
        ConfigurationError: the tokenizer cannot be read.
    """
    from whence_server.engines.upstream.engine import UpstreamEngine
    from whence_server.engines.upstream.opening import open_upstream
    from whence_server.engines.upstream.options import UpstreamOptions

    options = UpstreamOptions(
        url=settings.upstream,
        name=settings.model_name,
        whence_version=importlib.metadata.version("whence"),
        num_retries=settings.upstream_retry,
        weights=settings.upstream_weights,
    )
    if settings.tokenizer is not None:
        options = add_tokenizer(options, settings.tokenizer)
    return UpstreamEngine(
        options,
        partial(
            open_upstream,
            settings.upstream,
            kind=settings.upstream_kind,
            model=settings.upstream_model,
            api_key_file=settings.upstream_api_key_file,
        ),
    )


def add_tokenizer(options: "UpstreamOptions", path: Path) -> "UpstreamOptions":
    """Return an upstream's settings with a tokenizer.

    Raises:
        ConfigurationError: it cannot be read.
    """
    from whence_server.engines.file_digests import digest_files, digest_model_files
    from whence_server.text.tokenizer_folder import read_tokenizer_folder

    folder = read_tokenizer_folder(path)
    return replace(
        options,
        text=folder.text,
        tokenizer_digest=digest_model_files(digest_files(folder.directory, folder.names)),
        vocabulary_size=folder.vocabulary_size,
    )


def make_engine_options(settings: ServeConfig) -> EngineOptions:
    """Return the engine's part of the settings."""
    return EngineOptions(
        model=settings.model,
        model_name=settings.served_name,
        dtype=settings.dtype,
        device=settings.device,
        num_threads=settings.threads,
        max_batch_size=settings.max_batch_size,
        max_cache_tokens=settings.max_cache_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        trust_remote_code=settings.trust_remote_code,
        log_level=settings.log_level,
        digest_cache=str(settings.data_dir / "digests.json"),
        log_format=settings.log_format,
        head_weights=settings.head_weights,
        adapters=tuple((name, str(path)) for name, path in settings.adapters),
        step_kernels=StepKernels(settings.step_kernels),
        findings_cache=str(settings.data_dir / "findings.json"),
        code_cache=prepare_code_cache(settings.data_dir / "compiled"),
        kernel_variables=tuple(sorted(read_kernel_variables().items())),
        prefix_cache_tokens=settings.prefix_cache_tokens,
    )
