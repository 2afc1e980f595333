"""Watch over an upstream: its health, and what it is after it was away."""

from dataclasses import replace

import pytest
from scripted_upstream import TOLD, URL, USUAL, FakeUpstream
from waiting import wait_until

from whence_server.domain.engine import EngineState
from whence_server.domain.errors import ConfigurationError, UpstreamKeyError
from whence_server.engines.upstream.engine import UpstreamEngine
from whence_server.engines.upstream.exchange import UpstreamDescription
from whence_server.engines.upstream.options import UpstreamOptions


class Watched:
    """An engine that watches a fake upstream every few milliseconds."""

    def __init__(self) -> None:
        self.upstream = FakeUpstream([USUAL])
        self.seen: list[bool] = []
        options = UpstreamOptions(URL, "", "0.1", health_interval_s=0.01)
        self.engine = UpstreamEngine(options, self._open)
        self.engine.on_change = self._note

    async def _open(self) -> FakeUpstream:
        return self.upstream

    async def _note(self, is_up: bool) -> None:
        self.seen.append(is_up)


async def test_an_upstream_that_goes_and_comes_back_changes_the_health() -> None:
    watched = Watched()
    engine, upstream, seen = watched.engine, watched.upstream, watched.seen
    await engine.start()
    upstream.is_up = False
    await wait_until(lambda: seen == [False])
    assert engine.state is EngineState.RESTARTING
    upstream.is_up = True
    await wait_until(lambda: seen == [False, True])
    await engine.stop()


async def test_a_question_that_fails_does_not_end_the_watch() -> None:
    watched = Watched()
    engine, upstream, seen = watched.engine, watched.upstream, watched.seen

    async def fail() -> bool:
        raise ConfigurationError("the upstream's API key cannot be read")

    await engine.start()
    answer, upstream.check_health = upstream.check_health, fail
    await wait_until(lambda: seen == [False])
    upstream.check_health = answer
    await wait_until(lambda: seen == [False, True])
    await engine.stop()


async def test_an_upstream_that_comes_back_is_asked_what_it_is_now(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watched()
    engine, upstream, seen = watched.engine, watched.upstream, watched.seen

    async def refuse() -> UpstreamDescription:
        raise UpstreamKeyError("it does not accept the API key")

    await engine.start()
    describe, upstream.describe = upstream.describe, refuse
    upstream.is_up = False
    await wait_until(lambda: seen == [False])
    upstream.is_up = True
    await wait_until(lambda: "cannot be used: it does not accept the API key" in caplog.text)
    assert (engine.state, seen) == (EngineState.RESTARTING, [False])
    upstream.told = replace(TOLD, version="0.33.0")
    upstream.describe = describe
    await wait_until(lambda: seen == [False, True])
    assert "came back as another one (vllm 0.33.0 with smol)" in caplog.text
    await engine.stop()
