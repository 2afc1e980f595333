"""Readiness of the server, derived from that of its parts."""

from collections.abc import Awaitable, Callable


class Readiness:
    """Readiness of the engine and the journal; the server is SERVING while both are ready."""

    def __init__(self, set_serving: Callable[[bool], Awaitable[None]]) -> None:
        """Start with the engine not ready; call `set_serving` after every change."""
        self._set_serving = set_serving
        # The engine has a model to load first; the journal is open.
        self._ready = {"engine": False, "journal": True}

    async def set(self, part: str, ready: bool) -> None:
        """Set the readiness of one part, "engine" or "journal"."""
        self._ready[part] = ready
        await self._set_serving(all(self._ready.values()))
