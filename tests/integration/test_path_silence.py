"""A connection that a middlebox forgot is noticed, and the generation goes on over another one."""

from contextlib import ExitStack

from generation_readers import READERS, read_with_client
from proxied_reading import start_reading
from server_process import ServerProcess
from tcp_relay import TcpRelay

NUM_TOKENS = 60
NOTICED_S = 15.0
"""Time within which a client notices that its connection is gone."""
SLACK_S = 15.0
"""Time for which a reader waits before it asks again, and for which a busy machine may hold it up.
TCP itself gives up after minutes."""
FORGET_AFTER_BYTES = 4_000


def test_every_reader_notices_a_forgotten_connection(paced_server: ServerProcess) -> None:
    (undisturbed,) = read_with_client([paced_server.target], NUM_TOKENS)
    with ExitStack() as running:
        relays = [
            running.enter_context(TcpRelay(paced_server.target, FORGET_AFTER_BYTES))
            for _ in READERS
        ]
        started = [
            start_reading(reader, relay.target, NUM_TOKENS)
            for reader, relay in zip(READERS, relays, strict=True)
        ]
        readings = dict(zip(READERS, (reading.result() for reading in started), strict=True))
    waited_s = {
        reader: relay.reconnected_s - relay.forgotten_s
        for reader, relay in zip(READERS, relays, strict=True)
    }
    for reader, reading in readings.items():
        assert reading.describe_difference(undisturbed.token_ids) == "", reader
        assert 0 < waited_s[reader] < NOTICED_S + SLACK_S, reader
