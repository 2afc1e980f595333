"""The messages with which an engine process starts: its options, and the answer to them."""

from typing import NamedTuple

from whence_server.domain.model import ModelInfo


class EngineOptions(NamedTuple):
    """The first message: which model to load, and the bounds to keep."""

    model: str
    """A local directory or a hub id."""
    model_name: str
    """The name under which it is served."""
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
    """A JSON file that remembers the digests of large files; "" for none."""
    log_format: str = "console"
    """"console" or "json"."""
    head_weights: str = ""
    """A file with a weight for each attention head; "" for none."""


class Ready(NamedTuple):
    """The model is loaded; generations may be admitted."""

    model: ModelInfo


class LoadFailed(NamedTuple):
    """The model cannot be served; the process ends."""

    message: str
