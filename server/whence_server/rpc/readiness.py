"""Readiness of the server, derived from that of its parts."""

from collections.abc import Awaitable, Callable


class Readiness:
    """Readiness of the server's parts; it is SERVING while all of them are ready."""

    def __init__(self, set_serving: Callable[[bool], Awaitable[None]]) -> None:
        """Start with the engine not ready; call `set_serving` after every change."""
        self._set_serving = set_serving
        # The engine has a model to load first; the journal is open, and the callers' keys are read.
        self._ready = {"engine": False, "journal": True, "keys": True}

    async def set(self, part: str, ready: bool) -> None:
        """Set the readiness of one part, "engine", "journal" or "keys"."""
        self._ready[part] = ready
        await self._set_serving(all(self._ready.values()))
