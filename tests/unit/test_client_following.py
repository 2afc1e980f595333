"""Reading of a stream that resumes, without a connection."""

from collections.abc import Iterator
from typing import Any

import grpc

from whence.backoff import Backoff, RetryPolicy
from whence.following import Following
from whence.lifetime import Lifetime
from whence.resume import WatchStream
from whence.v1.trace_pb2 import WatchGenerationsRequest


class BrokenCall(grpc.RpcError):
    """A call that breaks before its first response."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def __iter__(self) -> Iterator[Any]:
        raise self

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_call_that_starts_while_another_thread_closes_is_cancelled() -> None:
    calls: list[BrokenCall] = []

    def start() -> BrokenCall:
        if calls:
            following.close()  # as another thread does between the check and the start
        calls.append(BrokenCall())
        return calls[-1]

    stream = WatchStream(WatchGenerationsRequest(), Backoff(RetryPolicy(first_delay_s=0.0)))
    following = Following(stream, start, Lifetime())
    assert next(following, None) is None
    assert [call.is_cancelled for call in calls] == [True, True]
