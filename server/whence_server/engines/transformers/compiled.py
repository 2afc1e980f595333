"""Loops compiled by numba, cached on disk if `NUMBA_CACHE_DIR` is set.

Compiling the engine's loops takes two seconds. With `NUMBA_CACHE_DIR`, numba's own variable, a
restarted engine loads the compiled code from that directory instead. `code_cache.py` sets it.
"""

import logging
from collections.abc import Callable
from typing import Any

from numba import config, njit

logger = logging.getLogger(__name__)


def compile_now(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for one signature at once, or load it from numba's cache.

    numba's cache key is the source file's content, the function's code and the CPU. Without
    `NUMBA_CACHE_DIR` nothing is cached: writing to disk is left to the operator.

    Args:
        signature: numba signature of the arguments.
        options: options of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if config.CACHE_DIR:
            try:
                return njit(signature, cache=True, **options)(function)
            # A faulty cache (full disk, truncated file) must not stop the engine.
            except Exception as error:  # noqa: BLE001
                logger.warning("numba's cache in %s is not used: %r", config.CACHE_DIR, error)
        return njit(signature, **options)(function)

    return decorate
