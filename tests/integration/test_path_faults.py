"""A generation outlives every fault of the path that a client can outlive, and names the others."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from client_fake_server import FakeServer
from faulty_peer import FaultyPeer
from generation_readers import READERS, Reading, read_with_client
from path_faults import Fault, Reset, list_final, list_resumed
from server_process import ServerProcess

from whence import Client

NUM_TOKENS = 60
NUM_SCRIPTED_EVENTS = 7


@pytest.fixture(scope="module")
def undisturbed(paced_server: ServerProcess) -> Reading:
    (reading,) = read_with_client([paced_server.target], NUM_TOKENS)
    assert reading.describe_difference(reading.token_ids) == ""
    assert len(reading.token_ids) == NUM_TOKENS
    return reading


def read_through(
    server: ServerProcess, reader: str, rows: dict[str, tuple[Fault, ...]]
) -> dict[str, tuple[Reading, FaultyPeer]]:
    """Read a generation through a peer for each row, all at the same time."""
    with ExitStack() as running:
        peers = [
            running.enter_context(FaultyPeer(server.target, *faults)) for faults in rows.values()
        ]
        readings = READERS[reader]([peer.target for peer in peers], NUM_TOKENS)
        return dict(zip(rows, zip(readings, peers, strict=True), strict=True))


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_lost_or_doubled(
    paced_server: ServerProcess, undisturbed: Reading, reader: str
) -> None:
    rows = list_resumed()
    found = read_through(paced_server, reader, rows)
    differences = {
        row: reading.describe_difference(undisturbed.token_ids)
        for row, (reading, _) in found.items()
    }
    assert differences == dict.fromkeys(rows, "")
    struck = {row: peer.num_struck for row, (_, peer) in found.items()}
    assert struck == {row: len(faults) for row, faults in rows.items()}


@pytest.mark.parametrize("reader", READERS)
def test_an_end_that_no_call_can_change_is_named_at_once(
    paced_server: ServerProcess, undisturbed: Reading, reader: str
) -> None:
    """Another call would give the rest of the tokens."""
    faults = list_final()
    for row, (reading, _) in read_through(paced_server, reader, faults).items():
        assert row in reading.end, reading.end
        # A stream that is reset loses what its reader has not taken yet.
        is_reset = isinstance(faults[row][0], Reset)
        assert (0 if is_reset else 1) <= len(reading.token_ids) < NUM_TOKENS
        assert reading.token_ids == undisturbed.token_ids[: len(reading.token_ids)]


def test_vocabularies_and_watches_are_read_over_every_fault() -> None:
    rows = list_resumed()
    with FakeServer() as server, ThreadPoolExecutor(len(rows)) as threads:
        for read in (read_vocabulary, read_watch):
            reads = {
                row: threads.submit(read, server.target, faults) for row, faults in rows.items()
            }
            assert {row: future.result() for row, future in reads.items()} == dict.fromkeys(
                rows, True
            )


def read_vocabulary(upstream: str, faults: tuple[Fault, ...]) -> bool:
    with FaultyPeer(upstream, *faults) as peer, Client(peer.target) as client:
        read = client.vocabulary()
        tokens = [read.text_of(token_id) for token_id in (0, 1, 2)]
        return tokens == ["<s>", "Hello", " world"] and not peer.faults


def read_watch(upstream: str, faults: tuple[Fault, ...]) -> bool:
    with FaultyPeer(upstream, *faults) as peer, Client(peer.target) as client:
        with client.generations.watch(after_position="0") as watch:
            positions = [next(watch).position for _ in range(NUM_SCRIPTED_EVENTS)]
        return positions == list("1234567") and not peer.faults
