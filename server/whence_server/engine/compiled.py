"""Loops compiled by numba, kept from one process to the next where there is a place for them.

Compiling the engine's takes it two seconds. `NUMBA_CACHE_DIR`, numba's own variable, names the
directory for what was compiled: an engine that is started again is ready that much sooner.
"""

import logging
from collections.abc import Callable
from typing import Any

from numba import config, njit

logger = logging.getLogger(__name__)


def compile_now(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for one signature, at once, or finds it as it was compiled before.

    numba knows what it has kept by the source file's content, by the function's code and by the
    processor. Without `NUMBA_CACHE_DIR` nothing is kept: that is for whoever runs it to allow.

    Args:
        signature: of the only kind of arguments that it takes.
        options: numba's, as for `njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if config.CACHE_DIR:
            try:
                return njit(signature, cache=True, **options)(function)
            # Whatever is wrong there (a full disk, a file cut short), a cache stops no engine.
            except Exception as error:  # noqa: BLE001
                logger.warning("compiled anew, as %s serves no cache: %r", config.CACHE_DIR, error)
        return njit(signature, **options)(function)

    return decorate
