"""A generation read through a real proxy, while its model stops and goes on."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from faulty_peer import FaultyPeer
from generation_readers import READERS, Reading
from paced_model import PacedModel
from proxies import haproxy, nginx

WAIT_S = 60.0


def _nginx(directory: Path, upstream: str, silence: str) -> AbstractContextManager[str]:
    return nginx(directory, upstream, grpc_read_timeout=silence)


def _haproxy(directory: Path, upstream: str, silence: str) -> AbstractContextManager[str]:
    return haproxy(directory, upstream, server=silence)


PROXIES: dict[str, Callable[[Path, str, str], AbstractContextManager[str]]] = {
    "nginx": _nginx,
    "HAProxy": _haproxy,
}
"""Proxies by name: each runs in a directory before a server, and ends streams after a silence."""


def start_reading(reader: str, target: str, num_tokens: int) -> Future[Reading]:
    """Read a generation in a thread of its own."""
    threads = ThreadPoolExecutor(1)
    future = threads.submit(lambda: READERS[reader]([target], num_tokens)[0])
    threads.shutdown(wait=False)
    return future


def read_over_limits(
    reader: str, target: str, num_tokens: int, model: PacedModel, peer: FaultyPeer, num_cuts: int
) -> Reading:
    """Read a generation whose model falls silent until its proxy has cut the stream.

    Args:
        reader: name of the reader.
        target: address of the proxy.
        num_tokens: number of tokens to generate.
        model: model of the server.
        peer: peer behind the proxy, which counts its calls.
        num_cuts: number of cuts.
    """
    reading = start_reading(reader, target, num_tokens)
    for _ in range(num_cuts):
        wait_for_messages(peer, num_tokens // (2 * num_cuts), reading)
        with model.held():
            num_calls = len(peer.calls)
            wait_while(lambda: len(peer.calls) == num_calls, reading)  # noqa: B023
    return reading.result()


def wait_for_messages(peer: FaultyPeer, number: int, reading: Future[Reading]) -> None:
    """Wait until a peer has handed on so many messages more."""
    enough = peer.num_messages + number
    wait_while(lambda: peer.num_messages < enough, reading)


def wait_while(condition: Callable[[], bool], reading: Future[Reading]) -> None:
    """Wait while a condition holds and the reading goes on.

    Raises:
        AssertionError: the reading ended first, or the condition holds for too long.
    """
    deadline = time.monotonic() + WAIT_S
    while condition():
        if reading.done():
            raise AssertionError(f"the reading ended first: {reading.result()}")
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing changed for {WAIT_S} s")
        time.sleep(0.002)
