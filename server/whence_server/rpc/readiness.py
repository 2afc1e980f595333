"""Health's one answer from everything that has to be in order for it."""

from collections.abc import Awaitable, Callable


class Readiness:
    """Says SERVING only while each of the parts says that it is ready."""

    def __init__(self, set_serving: Callable[[bool], Awaitable[None]]) -> None:
        """Pass on what follows from the parts to `set_serving`."""
        self._set_serving = set_serving
        # The engine has a model to load first; the journal is open.
        self._ready = {"engine": False, "journal": True}

    async def set(self, part: str, ready: bool) -> None:
        """Take note of one part: "engine" or "journal"."""
        self._ready[part] = ready
        await self._set_serving(all(self._ready.values()))
