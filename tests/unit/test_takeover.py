"""The task that takes logs over, without a database."""

import asyncio

import pytest
from waiting import wait_until

from whence_server import takeover
from whence_server.domain.errors import JournalError
from whence_server.domain.retention import RetentionPolicy
from whence_server.journal.sharing.refused import RefusedLogs
from whence_server.takeover import Takeovers


class Collector:
    """Export whose collector is away."""

    def start(self):
        pass

    async def flush(self, timeout_s):
        await asyncio.sleep(timeout_s)
        return False

    async def close(self):
        pass


class Logs:
    """Journal and sharing of a database with five idle logs.

    Attributes:
        taken: writers of the logs that were taken.
        num_looks: number of looks for logs to take over.
    """

    id = b"x"
    lease_s = 0.02

    def __init__(self, damaged=()):
        self.sharing = self
        self.taken = []
        self.num_looks = 0
        self._damaged = damaged

    async def take_over(self):
        self.num_looks += 1

    async def list_idle_logs(self):
        return [writer for writer in range(1, 6) if writer not in self.taken]

    async def take_idle(self, writer):
        self.taken.append(writer)
        if writer in self._damaged:
            raise JournalError("it is damaged")
        return self

    async def do_errands(self):
        pass

    async def give_back(self):
        pass

    def make_sweeper(self, *_):
        return None

    async def flush(self):
        pass

    async def close(self):
        pass


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Sweep at once and often, with nothing left open."""

    async def close_interrupted(_journal):
        pass

    monkeypatch.setattr(takeover, "_FIRST_SWEEP_S", 0.0)
    monkeypatch.setattr(takeover, "_SWEEP_S", 0.0)
    monkeypatch.setattr(takeover, "_FLUSH_S", 0.01)
    monkeypatch.setattr(takeover, "close_interrupted", close_interrupted)


async def test_one_sweep_of_idle_logs_runs_at_a_time_while_a_collector_is_away():
    logs = Logs()
    takeovers = Takeovers(logs, lambda _: {"spans": Collector()}, RetentionPolicy(1))
    takeovers.start()
    await wait_until(lambda: logs.num_looks >= 10)
    assert logs.taken == [1]
    await takeovers.close()


async def test_a_damaged_idle_log_does_not_end_the_sweep_of_the_others(caplog):
    logs = Logs(damaged={2})
    takeovers = Takeovers(logs, lambda _: {}, RetentionPolicy(1))
    takeovers.start()
    await wait_until(lambda: len(logs.taken) >= 5)
    await takeovers.close()
    assert logs.taken[:5] == [1, 2, 3, 4, 5]
    assert "cannot be swept: it is damaged" in caplog.text


def test_a_log_that_was_refused_is_left_alone_for_longer_each_time():
    now_s = 0.0
    refused = RefusedLogs(10.0, lambda: now_s)
    assert refused.list_paused() == []
    assert [refused.add(1), refused.add(1), refused.add(2)] == [10.0, 20.0, 10.0]
    assert refused.list_paused() == [1, 2]
    now_s = 15.0
    assert refused.list_paused() == [1]
    refused.forget(1)
    assert refused.list_paused() == []
    assert [refused.add(2) for _ in range(10)][-1] == 600.0
