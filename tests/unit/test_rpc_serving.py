"""Time for which callers are told why the model cannot be loaded, without a server."""

import pytest

from whence_server.domain.errors import ConfigurationError, ModelFailedError, ModelNotReadyError
from whence_server.rpc.serving import Serving


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serving(clock: Clock) -> Serving:
    return Serving("m", None, clock=clock)  # type: ignore[arg-type]  # no generation is asked for


def test_callers_are_told_for_7_s_after_the_port_opened(serving: Serving, clock: Clock) -> None:
    assert serving.telling_s == 0, "the port is not open"
    serving.note_opened()
    assert serving.telling_s == 7
    clock.now += 3
    assert serving.telling_s == 4
    clock.now += 5
    assert serving.telling_s == 0


def test_callers_are_told_for_7_s_after_the_last_one_asked(serving: Serving, clock: Clock) -> None:
    serving.note_opened()
    clock.now += 30
    with pytest.raises(ModelNotReadyError):
        serving.get_generations()
    clock.now += 2
    serving.set_failed(ConfigurationError("no weights"))
    assert serving.telling_s == 5
    clock.now += 1
    with pytest.raises(ModelFailedError, match="no weights"):
        serving.get_generations()
    assert serving.telling_s == 4, "a caller that was told does not wait"
