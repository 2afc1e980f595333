"""Shares of callers in the places for recorders."""

from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from whence_server.domain.errors import Code, RecordersFullError
from whence_server.domain.recorded import MAX_OWNER_RECORDERS, MAX_RECORDERS
from whence_server.generation.recording.recorders import Recorders
from whence_server.rpc.status import make_status


def make_recorders() -> Recorders:
    parts: Any = SimpleNamespace()
    return Recorders(parts, parts, lambda: None, parts)


def connect(recorders: Recorders, owner: str, number: int) -> None:
    for i in range(number):
        recorders.connect(f"{owner}{i}", "test/1", 1, owner)


async def test_caller_with_all_its_recorders_leaves_places_for_others() -> None:
    recorders = make_recorders()
    connect(recorders, "alice", MAX_OWNER_RECORDERS)
    with pytest.raises(RecordersFullError, match="this caller has 128 recorders"):
        recorders.connect("one more", "test/1", 1, "alice")
    connect(recorders, "bob", 1)
    recorders.connect("alice0", "test/1", 1, "alice")  # a known one comes back


async def test_places_of_all_callers_are_bounded() -> None:
    recorders = make_recorders()
    connect(recorders, "", MAX_RECORDERS)
    with pytest.raises(RecordersFullError, match="there are 256 recorders"):
        recorders.connect("one more", "test/1", 1)


async def test_refused_recorder_is_told_when_to_try_again() -> None:
    recorders = make_recorders()
    connect(recorders, "alice", MAX_OWNER_RECORDERS)
    recorders.disconnect("alice0", 1, "alice")
    with pytest.raises(RecordersFullError) as caught:
        recorders.connect("one more", "test/1", 1, "alice")
    recorders.close()
    status = make_status(caught.value)
    assert status.code == Code.RESOURCE_EXHAUSTED.value
    retry = error_details_pb2.RetryInfo()
    assert [detail.Unpack(retry) for detail in status.details].count(True) == 1
    assert retry.retry_delay == Duration(seconds=10)
