"""`make chaos`: prints what generations lose over each kind of path between client and server.

A row is a path, read by each reader. "lost" are the seconds beyond an undisturbed reading. The exit
status is 1 if a token is missing, or came twice, in any row.

python tests/chaos/path.py [--only WORD ...] [--tokens 400]
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

# Before torch is loaded, here and in the processes that this starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[2] / "build" / "numba"))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import pytest
from backend_process import find_free_port
from faulty_peer import FaultyPeer
from generation_readers import READERS, Reading
from paced_model import PacedModel, save_paced_model
from path_faults import list_resumed
from proxied_reading import PROXIES, read_over_limits, start_reading, wait_for_messages
from proxies import nginx
from server_process import ServerProcess
from tcp_relay import TcpRelay

from whence import Client

STEP_S = 0.01
NUM_AT_A_TIME = 7
"""Paths with faults that are read at the same time; more would compete for the cores."""
SILENCE = "300ms"
"""Limit of the proxies for a stream without messages, shorter than the progress interval."""
NUM_CUTS = 3
NUM_STREAMS_OF_NGINX = 128
"""nginx's default of calls on one connection."""
FORGET_AFTER_BYTES = 20_000


@dataclass
class Row:
    """Readings over one path at the same time.

    Attributes:
        path: the path, in words.
        readings: readings over it.
        expected: tokens that each of them has to have.
        end: reason with which the generations have to finish.
        undisturbed_s: duration of as many readings without a fault.
    """

    path: str
    readings: list[Reading]
    expected: list[int]
    end: str = "length"
    undisturbed_s: float = 0.0

    def describe_difference(self) -> str:
        """Return how the first reading that is not complete differs; "" if all are complete."""
        found = (r.describe_difference(self.expected, self.end) for r in self.readings)
        return next((difference for difference in found if difference), "")


class Lab:
    """Paced model, a server on it, and undisturbed readings, which the rows share."""

    def __init__(self, directory: Path, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.model: PacedModel = save_paced_model(directory / "model", STEP_S)
        self._directory = directory
        self.server = self.serve(self.make_directory(), "127.0.0.1:0")

    def serve(self, data: Path, address: str) -> ServerProcess:
        """Start a server on the paced model; a context manager."""
        flags = ("--trust-remote-code", "--listen", address)
        return ServerProcess(self.model.directory, data, *flags)

    def make_directory(self) -> Path:
        """Return a new directory."""
        return Path(tempfile.mkdtemp(dir=self._directory))

    def read_undisturbed(self, reader: str, number: int = 1) -> tuple[list[int], float]:
        """Return the tokens of a generation, and the duration of so many at the same time."""
        readings = READERS[reader]([self.server.target] * number, self.num_tokens)
        return readings[0].token_ids, max(reading.duration_s for reading in readings)


def read_over_limits_of_proxies(lab: Lab, reader: str) -> Iterator[Row]:
    """Read through nginx and HAProxy whose limits pass three times."""
    expected, undisturbed_s = lab.read_undisturbed(reader)
    for proxy, run in PROXIES.items():
        with FaultyPeer(lab.server.target) as peer:
            with run(lab.make_directory(), peer.target, SILENCE) as target:
                reading = read_over_limits(
                    reader, target, lab.num_tokens, lab.model, peer, NUM_CUTS
                )
        path = f"{proxy}, its limit passes {NUM_CUTS} times"
        yield Row(path, [reading], expected, undisturbed_s=undisturbed_s)


def read_over_restarts(lab: Lab, reader: str) -> Iterator[Row]:
    """Read through proxies while the server behind them ends.

    Asked to stop, it lets the generation finish. Killed and started again, it finishes the
    generation as interrupted, with the tokens that are on record.
    """
    expected, undisturbed_s = lab.read_undisturbed(reader)
    for proxy, run in PROXIES.items():
        address, data = f"127.0.0.1:{find_free_port()}", lab.make_directory()
        with ExitStack() as running:
            first = running.enter_context(lab.serve(data, address))
            peer = running.enter_context(FaultyPeer(address))
            target = running.enter_context(run(lab.make_directory(), peer.target, "60s"))
            reading = start_reading(reader, target, lab.num_tokens)
            wait_for_messages(peer, lab.num_tokens // 4, reading)
            first.process.terminate()
            stopped = Row(f"{proxy}, the server stops", [reading.result()], expected)
            stopped.undisturbed_s = undisturbed_s
            yield stopped
            first.wait()

            second = running.enter_context(lab.serve(data, address))
            reading = start_reading(reader, target, lab.num_tokens)
            wait_for_messages(peer, lab.num_tokens // 4, reading)
            second.kill()
            running.enter_context(lab.serve(data, address))
            found = reading.result()
            recorded = read_newest_record(address)
        # Tokens that were shown before they were on disk are counted, and not on record.
        shown = [*recorded, *found.token_ids[len(recorded) :][: found.num_unrecorded]]
        killed = Row(f"{proxy}, the server is killed", [found], shown, "interrupted")
        killed.undisturbed_s = len(found.token_ids) * lab.model.step_s
        yield killed


def read_newest_record(target: str) -> list[int]:
    """Return the token ids on record of the newest generation."""
    with Client(target) as client:
        newest = next(client.generations.list())
        return [step.token_id for step in client.generations.steps(newest.generation_id)]


def read_over_faults(lab: Lab, reader: str) -> Iterator[Row]:
    """Read through a peer for each fault, several at the same time."""
    rows = list(list_resumed().items())
    expected, undisturbed_s = lab.read_undisturbed(reader, NUM_AT_A_TIME)
    for first in range(0, len(rows), NUM_AT_A_TIME):
        with ExitStack() as running:
            peers = {
                name: running.enter_context(FaultyPeer(lab.server.target, *faults))
                for name, faults in rows[first : first + NUM_AT_A_TIME]
            }
            readings = READERS[reader]([peer.target for peer in peers.values()], lab.num_tokens)
        for (name, peer), reading in zip(peers.items(), readings, strict=True):
            path = f"{name}, {peer.num_struck} times"
            yield Row(path, [reading], expected, undisturbed_s=undisturbed_s)


def read_over_a_forgotten_connection(lab: Lab, reader: str) -> Iterator[Row]:
    """Read over a connection that is forgotten in mid-stream."""
    expected, undisturbed_s = lab.read_undisturbed(reader)
    with TcpRelay(lab.server.target, FORGET_AFTER_BYTES) as relay:
        readings = READERS[reader]([relay.target], lab.num_tokens)
    yield Row("a connection forgotten in silence", readings, expected, undisturbed_s=undisturbed_s)


def read_over_a_full_connection(lab: Lab, reader: str) -> Iterator[Row]:
    """Read more generations than nginx allows calls on one connection."""
    number = NUM_STREAMS_OF_NGINX + 2
    expected, undisturbed_s = lab.read_undisturbed(reader, number)
    settings = {"http2_max_concurrent_streams": str(NUM_STREAMS_OF_NGINX)}
    with nginx(lab.make_directory(), lab.server.target, **settings) as target:
        readings = READERS[reader]([target] * number, lab.num_tokens)
    path = f"nginx, {number} streams, of which a connection has {NUM_STREAMS_OF_NGINX}"
    yield Row(path, readings, expected, undisturbed_s=undisturbed_s)


PATHS: tuple[Callable[[Lab, str], Iterator[Row]], ...] = (
    read_over_limits_of_proxies,
    read_over_restarts,
    read_over_faults,
    read_over_a_forgotten_connection,
    read_over_a_full_connection,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[path.__name__ for path in PATHS])
    parser.add_argument("--tokens", type=int, default=400, help="number of tokens of a generation")
    options = parser.parse_args()
    num_failed = 0
    with tempfile.TemporaryDirectory() as directory:
        lab = Lab(Path(directory), options.tokens)
        with lab.server:
            print(f"{'path':44} {'reader':12} tokens  missing  doubled  lost")
            for path in PATHS:
                if options.only and path.__name__ not in options.only:
                    continue
                for reader in READERS:
                    try:
                        for row in path(lab, reader):
                            num_failed += print_row(row, reader)
                    except pytest.skip.Exception as missing:
                        print(f"{path.__name__} by {reader} is left out: {missing}")
    print(f"{num_failed} rows failed" if num_failed else "nothing was lost or doubled")
    return 1 if num_failed else 0


def print_row(row: Row, reader: str) -> bool:
    """Print a row; return True if a reading is not complete."""
    difference = row.describe_difference()
    numbers = (
        sum(len(reading.indexes) for reading in row.readings),
        sum(reading.num_missing for reading in row.readings),
        sum(reading.num_doubled for reading in row.readings),
    )
    lost_s = max(0.0, max(r.duration_s for r in row.readings) - row.undisturbed_s)
    tokens, missing, doubled = numbers
    print(
        f"{row.path:44} {reader:12} {tokens:6}  {missing:7}  {doubled:7}  {lost_s:4.1f} s"
        f"{'  FAILED: ' if difference else ''}{difference}",
        flush=True,
    )
    return bool(difference)


if __name__ == "__main__":
    sys.exit(main())
