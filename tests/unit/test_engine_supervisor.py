"""Restarts of an engine while the system has no room for a process."""

import errno
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from whence_server.domain.errors import ConfigurationError, EngineLostError
from whence_server.engines.transformers import supervisor
from whence_server.engines.transformers.supervisor import (
    MAX_START_FAILURES,
    EngineState,
    EngineSupervisor,
)

NO_DESCRIPTORS = OSError(errno.EMFILE, "Too many open files")


class Adapter(NamedTuple):
    name: str
    weights_digest: str


class Model:
    """Fake description of a model, with the adapters that its files have now."""

    weights_digest = "same"
    now: tuple[Adapter, ...] = ()

    def __init__(self) -> None:
        self.adapters = type(self).now


class Process:
    """Fake engine process with given outcomes of its starts."""

    outcomes: Iterator[Exception | None]
    stopped: int
    pid = 1

    def __init__(self, *_arguments: object) -> None:
        pass

    async def start(self) -> Model:
        if (error := next(type(self).outcomes)) is not None:
            raise error
        return Model()

    async def stop(self) -> None:
        type(self).stopped += 1


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Arguments of `on_change`; delays between attempts are removed."""
    Process.stopped = 0
    monkeypatch.setattr(supervisor, "EngineProcess", Process)
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.0)
    return []


def supervised(told: list[bool], *outcomes: Exception | None) -> EngineSupervisor:
    Process.outcomes = iter(outcomes)

    async def on_change(up: bool) -> None:
        told.append(up)

    supervisor = EngineSupervisor(None)  # type: ignore[arg-type]  # not looked at
    supervisor.on_change = on_change
    return supervisor


async def test_failing_to_create_a_process_is_retried_without_counting(told: list[bool]) -> None:
    engine = supervised(told, None, *[NO_DESCRIPTORS] * (MAX_START_FAILURES * 3), None)
    await engine.start()
    await engine.restart()
    assert engine.state is EngineState.RUNNING
    assert told == [False, True]
    # Each attempt leaves nothing behind.
    assert Process.stopped == 1 + MAX_START_FAILURES * 3


async def test_an_engine_that_fails_to_start_is_given_up(told: list[bool]) -> None:
    failures = [ConfigurationError("gone")] * MAX_START_FAILURES
    engine = supervised(told, None, NO_DESCRIPTORS, *failures)
    await engine.start()
    with pytest.raises(EngineLostError, match="failed to start 3 times"):
        await engine.restart()
    assert told == [False]


@pytest.mark.parametrize("now", [(Adapter("b", "1"), Adapter("a", "2")), (Adapter("b", "1"),)])
async def test_a_changed_adapter_ends_the_engine(
    told: list[bool], monkeypatch: pytest.MonkeyPatch, now: tuple[Adapter, ...]
) -> None:
    engine = supervised(told, None, None, None)
    monkeypatch.setattr(Model, "now", (Adapter("a", "1"), Adapter("b", "1")))
    await engine.start()
    await engine.restart()
    monkeypatch.setattr(Model, "now", now)
    with pytest.raises(EngineLostError, match="the files of the adapter 'a' have changed"):
        await engine.restart()
    assert engine.state is EngineState.LOST


async def test_failing_to_create_the_first_process_is_reported(told: list[bool]) -> None:
    with pytest.raises(ConfigurationError, match="Too many open files"):
        await supervised(told, NO_DESCRIPTORS).start()
