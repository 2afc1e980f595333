"""Identity of an upstream: noticed when it is started anew, perhaps with another model.

Between two questions about its health an upstream can end and start again. A connection does not
outlive its process, so the upstream is asked what it is whenever a connection was opened. Behind a
proxy, whose connections outlive it, only the regular question notices.

Another description is a difference: nothing is generated until it is known what the upstream is
now. Another process of the same description is a doubt: its settings may be others, or it is one of
several behind one address. What it does is found by asking, while generations go on.
"""

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from whence_server.domain.errors import (
    UpstreamMalformedError,
    UpstreamModelError,
    UpstreamRefusedError,
    WhenceError,
)
from whence_server.engines.upstream.exchange import UpstreamDescription

_DIFFERENT = (UpstreamModelError, UpstreamRefusedError, UpstreamMalformedError)
"""Errors of an upstream that no longer serves the model, or is one of another kind."""
_MAX_PROCESSES = 256
"""Processes behind one address that are remembered."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """An upstream as it describes itself at one moment."""

    description: UpstreamDescription
    process: str
    """Text that is another one after a restart; "" if the upstream tells none."""


class IdentityWatch:
    """Watch over the identity of one upstream.

    Args:
        ask: asks the upstream for its identity, over connections that are not counted.
        name: the upstream, for errors.

    Attributes:
        num_opened: connections that were opened so far.
        on_doubt: called when the upstream has to be described anew.
    """

    def __init__(self, ask: Callable[[], Awaitable[Identity]], name: str) -> None:
        self.num_opened = 0
        self.on_doubt: Callable[[], None] = lambda: None
        self._ask = ask
        self._name = name
        self._known: UpstreamDescription | None = None
        self._processes: deque[str] = deque(maxlen=_MAX_PROCESSES)
        self._difference = ""
        self._is_settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._num_confirmed = 0
        """Connections that were opened before the identity was last confirmed."""

    def note_opened(self) -> None:
        """Note that a connection was opened, maybe to another process than the ones before."""
        self.num_opened += 1
        if self._known is not None:
            self._begin()

    def settle(self, identity: Identity, num_opened: int) -> None:
        """Take an identity as the one that records name.

        Args:
            identity: the identity.
            num_opened: `num_opened` before it was asked for.
        """
        self._known, self._difference, self._num_confirmed = identity.description, "", num_opened
        if identity.process not in self._processes:
            self._processes.append(identity.process)
        self._is_settled.set()

    def require(self) -> None:
        """Refuse to go on with an upstream that is known to be another one.

        Raises:
            UpstreamModelError: it is another one.
        """
        if self._difference:
            raise UpstreamModelError(
                f"{self._name} is another one than whence knows, since it was started anew: "
                f"{self._difference}; whence asks what it is: repeat the request"
            )

    async def confirm(self, timeout_s: float) -> None:
        """Wait until the identity is confirmed that the newest connection leads to.

        It stays open if the upstream does not answer in time; later calls wait again.

        Raises:
            UpstreamModelError: it is another one.
        """
        if self._known is None or self._num_confirmed >= self.num_opened:
            return
        await asyncio.wait({self._begin()}, timeout=timeout_s)
        self.require()

    async def wait_settled(self, timeout_s: float) -> None:
        """Wait until the upstream was described anew, if there is a doubt."""
        if self._known is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_settled.wait()

    async def is_same(self) -> bool:
        """Ask now; return whether the upstream is the one that records name, as far as it says."""
        if self._known is not None and not self._difference:
            await self._compare()
        return self._is_settled.is_set()

    async def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> "asyncio.Task[None]":
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._confirm(), name="upstream-identity")
        return self._task

    async def _confirm(self) -> None:
        """Ask until no connection was opened since the last question."""
        while self._num_confirmed < self.num_opened and not self._difference:
            if not await self._compare():
                return

    async def _compare(self) -> bool:
        """Compare what the upstream is now with what is known; return False without an answer."""
        known, num_opened = self._known, self.num_opened
        difference, is_doubtful = "", False
        try:
            now = await self._ask()
        except _DIFFERENT as error:
            difference = error.message
        except WhenceError as error:
            # It is away, or busy, or the file of its key cannot be read.
            _log.debug("the upstream does not say whether it is the same: %s", error)
            return False
        else:
            if known is not None:
                difference = _describe_difference(known, now.description)
            is_doubtful = now.process not in self._processes
        if known is self._known:
            self._difference = difference
            self._num_confirmed = max(self._num_confirmed, num_opened)
            if difference or is_doubtful:
                self._is_settled.clear()
                self.on_doubt()
        return True


def _describe_difference(known: UpstreamDescription, now: UpstreamDescription) -> str:
    return ", ".join(
        f"its {field.name.replace('_', ' ')} was {was!r} and is {is_now!r}"
        for field in dataclasses.fields(UpstreamDescription)
        if (was := getattr(known, field.name)) != (is_now := getattr(now, field.name))
    )
