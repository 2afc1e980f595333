"""Messages at the start of an engine process: its options, and the answer."""

from typing import NamedTuple

from whence_server.domain.model import ModelInfo, StepKernels


class EngineOptions(NamedTuple):
    """First message to the engine: the model to load, and the engine's settings."""

    model: str
    """Local directory or hub id."""
    model_name: str
    """Name under which the model is served."""
    dtype: str
    """"auto", "float32", "bfloat16" or "float16"."""
    device: str
    num_threads: int
    """0 lets the engine choose."""
    max_batch_size: int
    max_cache_tokens: int
    prefill_chunk_tokens: int
    trust_remote_code: bool
    log_level: str
    """"debug", "info", "warning" or "error"."""
    digest_cache: str
    """Path of a JSON file that caches the digests of large files; "" for none."""
    log_format: str = "console"
    """"console" or "json"."""
    head_weights: str = ""
    """Path of a file with a weight for each attention head; "" for none."""
    adapters: tuple[tuple[str, str], ...] = ()
    """Name and directory of each adapter that requests can name."""
    step_kernels: StepKernels = StepKernels.EXACT
    findings_cache: str = ""
    """Path of a JSON file that caches what the trials of models found; "" for none."""
    code_cache: str = ""
    """Directory for the engine's compiled loops, unless NUMBA_CACHE_DIR names one; "" for none."""
    kernel_variables: tuple[tuple[str, str], ...] = ()
    """Environment variables that choose kernels, with their values, sorted."""
    prefix_cache_tokens: int = 0
    """Positions in the prefix cache; 0 turns it off."""
    maps_weights: bool = False
    """True if tensors may stay in the mapped files, which a process that ends soon shares with
    others; a write to a file then changes the model."""


class Ready(NamedTuple):
    """Answer of an engine that has loaded its model."""

    model: ModelInfo


class LoadFailed(NamedTuple):
    """Answer of an engine that cannot serve the model, and exits."""

    message: str
