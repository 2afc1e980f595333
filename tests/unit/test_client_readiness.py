"""Logic of waiting until a model is ready, without a server."""

import pytest

from whence.backoff import RetryPolicy
from whence.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    Origin,
    UnavailableError,
    WhenceError,
)
from whence.readiness import LoadingWait, ReadyWait
from whence.v1 import model_pb2


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def model(state: model_pb2.ModelState, failure: str = "") -> model_pb2.Model:
    return model_pb2.Model(model="m", state=state, failure=failure)


def test_only_a_ready_model_ends_the_wait() -> None:
    waiting = ReadyWait(None)
    assert waiting.is_ready(model(model_pb2.MODEL_STATE_READY))
    assert not waiting.is_ready(model(model_pb2.MODEL_STATE_LOADING))
    with pytest.raises(FailedPreconditionError, match="no weights") as caught:
        waiting.is_ready(model(model_pb2.MODEL_STATE_FAILED, "no weights"))
    assert caught.value.reason == "MODEL_FAILED"


@pytest.mark.parametrize(
    "error",
    [
        None,
        UnavailableError("no server", origin=Origin.PATH),
        DeadlineExceededError("no answer", origin=Origin.PATH),
        InternalError("bad gateway", origin=Origin.PATH),
    ],
)
def test_wait_lasts_until_its_time_is_over(error: WhenceError | None) -> None:
    clock = Clock()
    waiting = ReadyWait(3.0, clock=clock)
    delays = []
    while clock.now < 53:
        assert 0 < waiting.call_timeout_s <= 5
        delays.append(waiting.choose_delay_s(error))
        clock.now += delays[-1]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 0.5])
    with pytest.raises(UnavailableError) as caught:
        waiting.choose_delay_s(error)
    if error is None:
        assert caught.value.reason == "MODEL_LOADING"
    else:
        assert caught.value.message == error.message


def test_wait_without_a_limit_asks_once_a_second() -> None:
    clock = Clock()
    waiting = ReadyWait(None, clock=clock)
    for _ in range(100):
        clock.now += waiting.choose_delay_s(UnavailableError("none", origin=Origin.PATH))
    assert waiting.choose_delay_s(None) == 1.0
    assert waiting.call_timeout_s == 5.0


def test_permanent_error_ends_the_wait() -> None:
    with pytest.raises(NotFoundError, match="no such model"):
        ReadyWait(None).choose_delay_s(NotFoundError("no such model", origin=Origin.SERVER))


LOADING = UnavailableError(
    "loading", origin=Origin.SERVER, reason="MODEL_LOADING", retry_delay_s=1.0
)


@pytest.mark.parametrize(
    ("connect_timeout_s", "timeout_s", "delays"),
    [
        (3.5, None, [1.0, 1.0, 1.0, 0.5]),
        (3.5, 30.0, [1.0, 1.0, 1.0, 0.5]),
        (60.0, 2.5, [1.0, 1.0]),
        (0.0, 30.0, []),
    ],
)
def test_a_call_waits_for_its_model_within_patience_and_timeout(
    connect_timeout_s: float, timeout_s: float | None, delays: list[float]
) -> None:
    clock = Clock()
    waiting = LoadingWait(RetryPolicy(connect_timeout_s, 0.0), timeout_s, clock=clock)
    assert waiting.timeout_s == timeout_s
    for delay_s in delays:
        assert waiting.choose_delay_s(LOADING) == delay_s
        clock.now += delay_s
        assert waiting.timeout_s is None or waiting.timeout_s > 0
    with pytest.raises(UnavailableError) as raised:
        waiting.choose_delay_s(LOADING)
    assert raised.value is LOADING


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("shutting down", origin=Origin.SERVER, reason="DRAINING"),
        UnavailableError("no connection", origin=Origin.PATH),
        NotFoundError("no such run", origin=Origin.SERVER),
    ],
)
def test_a_call_waits_for_nothing_but_its_model(error: WhenceError) -> None:
    with pytest.raises(type(error)):
        LoadingWait(RetryPolicy(), None).choose_delay_s(error)
