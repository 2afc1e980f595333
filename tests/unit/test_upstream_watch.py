"""Watch over an upstream: its health, and what it is after it was away."""

from dataclasses import replace

import pytest
from scripted_upstream import TOLD, URL, USUAL, FakeUpstream
from waiting import wait_until

from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.engine import Admit, EngineState
from whence_server.domain.errors import (
    ConfigurationError,
    UpstreamKeyError,
    UpstreamModelError,
)
from whence_server.domain.model import ModelInfo
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
    upstream.told = replace(TOLD, version="0.33.0", claimed_files="/models/other")
    upstream.describe = describe
    await wait_until(lambda: seen == [False, True])
    said = "came back as another one: it is vllm 0.33.0, and serves smol from /models/other"
    assert said in caplog.text
    await engine.stop()


async def test_a_restart_between_two_questions_changes_what_records_name() -> None:
    watched = Watched()
    engine, upstream = watched.engine, watched.upstream
    models: list[ModelInfo] = []
    await engine.start()
    engine.watch_model(models.append)
    upstream.told = replace(TOLD, version="0.33.0", max_context_length=50)
    upstream.is_known = False
    await wait_until(lambda: bool(models))
    (model,) = models
    assert model.upstream is not None
    assert (model.upstream.version, model.max_context_length) == ("0.33.0", 50)
    # It was never away.
    assert (engine.state, watched.seen) == (EngineState.RUNNING, [])
    # A front that is not ready yet is told later.
    engine.watch_model(models.append)
    assert models == [model, model]
    await engine.stop()


async def test_a_generation_is_held_against_what_it_was_graded_by() -> None:
    watched = Watched()
    engine, upstream = watched.engine, watched.upstream
    models: list[ModelInfo] = []
    await engine.start()
    engine.watch_model(models.append)
    admission = Admit("g", [5], Decoding(Strategy.GREEDY, 4), TraceOptions())
    engine.grade(admission)
    # Its record is written meanwhile.
    upstream.told = replace(TOLD, version="0.33.0")
    upstream.is_known = False
    await wait_until(lambda: bool(models))
    engine.send(admission)
    await wait_until(lambda: upstream.pinned == [TOLD])
    await engine.stop()


async def test_an_upstream_that_comes_back_with_another_model_is_not_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Watched()
    engine, upstream, seen = watched.engine, watched.upstream, watched.seen

    async def refuse() -> UpstreamDescription:
        raise UpstreamModelError("it does not serve the model 'smol'")

    await engine.start()
    describe, upstream.describe = upstream.describe, refuse
    upstream.is_known = False
    await wait_until(lambda: seen == [False])
    assert "cannot be used: it does not serve the model 'smol'" in caplog.text
    upstream.describe = describe
    await wait_until(lambda: seen == [False, True])
    await engine.stop()
