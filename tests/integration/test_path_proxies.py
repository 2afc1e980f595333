"""Streams through nginx and HAProxy, configured as deploy/README.md shows."""

import time
from pathlib import Path

import pytest
from faulty_peer import FaultyPeer
from generation_readers import READERS, Reading, read_with_client
from paced_model import PacedModel
from proxied_reading import (
    PROXIES,
    read_over_limits,
    start_reading,
    wait_for_messages,
)
from proxies import nginx
from server_process import ServerProcess

from whence import Client, FinishReason
from whence.client import CLOSE_TIMEOUT_S

NUM_TOKENS = 60
SHORT, LONG = "250ms", "1200ms"
"""Silences after which the proxies cut: below and above the server's progress interval, 500 ms."""


@pytest.fixture(scope="module")
def undisturbed(paced_server: ServerProcess) -> Reading:
    (reading,) = read_with_client([paced_server.target], NUM_TOKENS)
    assert len(reading.token_ids) == NUM_TOKENS
    return reading


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_lost_when_a_proxys_limit_passes(
    paced_server: ServerProcess,
    paced_model: PacedModel,
    undisturbed: Reading,
    tmp_path: Path,
    proxy: str,
    reader: str,
) -> None:
    with FaultyPeer(paced_server.target) as peer:
        with PROXIES[proxy](tmp_path, peer.target, SHORT) as target:
            reading = read_over_limits(reader, target, NUM_TOKENS, paced_model, peer, num_cuts=3)
    assert reading.describe_difference(undisturbed.token_ids) == ""
    assert peer.calls.count("ResumeGeneration") >= 3


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_quiet_stream_is_not_cut(
    paced_server: ServerProcess,
    paced_model: PacedModel,
    undisturbed: Reading,
    tmp_path: Path,
    proxy: str,
) -> None:
    """Three messages of progress come, whose intervals together are longer than the limit."""
    with FaultyPeer(paced_server.target) as peer:
        with PROXIES[proxy](tmp_path, peer.target, LONG) as target:
            reading = start_reading("Client", target, NUM_TOKENS)
            wait_for_messages(peer, 5, reading)
            with paced_model.held():
                # The pass that runs already still gives a token.
                wait_for_messages(peer, 2 + 3, reading)
            assert reading.result().describe_difference(undisturbed.token_ids) == ""
    assert peer.calls == ["Generate"]


def test_a_full_connection_leaves_room_for_lists_and_for_closing(
    paced_server: ServerProcess, paced_model: PacedModel, tmp_path: Path
) -> None:
    """nginx allows few calls on a connection here, and each generation takes one."""
    with nginx(tmp_path, paced_server.target, http2_max_concurrent_streams="4") as target:
        with Client(target, timeout_s=60.0) as client, Client(target, timeout_s=60.0) as other:
            running = [client.generate("x", max_new_tokens=2_000) for _ in range(6)]
            next(running[0])
            with paced_model.held():
                assert client.models()
                assert other.models()
                began = time.monotonic()
                running[0].close()
                assert time.monotonic() - began < CLOSE_TIMEOUT_S
            finished = other.generations.get(running[0].id).finished
            assert FinishReason.from_wire(finished.finish_reason) is FinishReason.CANCELLED
            for generation in running[1:]:
                generation.close()
