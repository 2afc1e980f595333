"""Attempts to connect to a database that does not answer."""

import pytest

from whence_server.domain.errors import JournalUnreachableError
from whence_server.journal.postgres.reachability import Reachability


class Network:
    """Attempts to connect, and the time that each takes.

    Attributes:
        now_s: time of the clock.
        num_attempts: number of attempts.
    """

    def __init__(self, is_away, duration_s):
        self.is_away, self.duration_s = is_away, duration_s
        self.now_s, self.num_attempts = 100.0, 0

    def connect(self):
        self.num_attempts += 1
        self.now_s += self.duration_s
        if self.is_away:
            raise JournalUnreachableError("it does not answer")
        return "connection"


def try_often(reachability, network, number):
    for _ in range(number):
        with pytest.raises(JournalUnreachableError):
            reachability.connect(network.connect)


def test_reads_that_waited_for_a_thread_fail_with_the_attempt_before_them():
    network = Network(is_away=True, duration_s=5.0)
    reachability = Reachability(lambda: network.now_s)
    try_often(reachability, network, 60)
    assert (network.num_attempts, network.now_s) == (1, 105.0)
    network.now_s += 1.0
    try_often(reachability, network, 60)
    assert network.num_attempts == 2
    network.is_away, network.now_s = False, network.now_s + 1.0
    assert reachability.connect(network.connect) == "connection"
    assert reachability.connect(network.connect) == "connection"


def test_an_attempt_that_is_refused_at_once_can_be_repeated():
    network = Network(is_away=True, duration_s=0.01)
    reachability = Reachability(lambda: network.now_s)
    try_often(reachability, network, 3)
    assert network.num_attempts == 3
    network.is_away = False
    assert reachability.connect(network.connect) == "connection"
