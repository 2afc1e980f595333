"""PostgreSQL is killed and cut off, and a replica is lost, while callers generate without a pause.

No stream of a server that lives ends, nothing that a caller saw is missing on record, and the chain
verifies. A round's times are random; CHAOS_SEED repeats them.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from awaiting import await_that
from honest_callers import HonestCallers, list_lost, read_recorded
from network_namespace import NamespaceRefusedError, NetworkNamespace
from paced_model import save_paced_model
from postgres import PostgresServer
from required import skip_without
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

LEASE_S = 8.0
STEP_S = 0.01
NUM_TOKENS = 150
"""Tokens of a generation: it lasts for about two seconds, and most faults hit it in the middle."""
NUM_LONG_TOKENS = 4_000
"""Tokens of a generation that lasts until its server is lost."""
PATIENCE_S = 120
OUTAGE_S = (0.2, 3.0)
CUT_S = (0.2, 2.0)
"""Bounds of a cut that no lease notices."""
LOSSES = ("is killed", "is paused", "is cut off")


class Site:
    """Two replicas on one PostgreSQL, of which the second is behind a cable that can be cut."""

    def __init__(self, folder: Path, cable: NetworkNamespace | None) -> None:
        self.cable = cable
        self.postgres = PostgresServer(address=cable.host if cable else "")
        self._folder = folder
        self._model = save_paced_model(folder / "model", STEP_S).directory
        self.url = self.postgres.make_journal_url(str(folder))
        self.a = self._make_replica("a")
        self.b = self._make_replica("b")
        self._num_taken = [0, 0]

    def _make_replica(self, name: str) -> ServerProcess:
        """Start a replica; the one behind the cable shows a token only once it is on record."""
        url, prefix, durability = self.url, (), "group"
        if name == "b":
            durability = "strict"
            if self.cable is not None:
                url = url.replace("127.0.0.1", self.cable.host)
                prefix = self.cable.prefix
        return ServerProcess(
            self._model,
            self._folder / name,
            *("--trust-remote-code", "--durability", durability),
            *("--journal-lease", str(LEASE_S), "--journal-patience", str(PATIENCE_S)),
            environment={"WHENCE_JOURNAL": url},
            prefix=prefix,
        )

    def require_cable(self) -> NetworkNamespace:
        """Return the cable; skip the test where there is none."""
        if self.cable is None:
            skip_without("netns", "network namespaces are not allowed here")
        return self.cable

    def replace_lost(self) -> None:
        """Start the second replica again, if it has ended."""
        if self.b.process.poll() is not None:
            self.b = self._make_replica("b").wait_ready()

    def lose(self, loss: str) -> None:
        """Have the second replica lose its log to the first, and see it end."""
        num_taken = _count_taken_logs(self.a)
        if loss == "is killed":
            self.b.kill()
        elif loss == "is paused":
            self.b.process.send_signal(signal.SIGSTOP)
        else:
            self.require_cable().cut()
        await_that(lambda: _count_taken_logs(self.a) > num_taken, "the log is taken over")
        if loss == "is paused":
            self.b.process.send_signal(signal.SIGCONT)
        elif loss == "is cut off":
            self.require_cable().mend()
        assert self.b.wait() == (-signal.SIGKILL if loss == "is killed" else 1)

    def begin(self) -> None:
        """Have both replicas live, and note which logs they took over before, in other tests."""
        self.replace_lost()
        self._num_taken = [_count_taken_logs(replica) for replica in (self.a, self.b)]

    def assert_nobody_lost_a_log(self) -> None:
        """Check that both replicas live, and that neither took the other's log meanwhile."""
        for replica, num_taken in zip((self.a, self.b), self._num_taken, strict=True):
            assert replica.process.poll() is None, "".join(replica.log)
            assert _count_taken_logs(replica) == num_taken, "".join(replica.log)

    def assert_chain_verifies(self) -> None:
        command = [sys.executable, "-m", "whence_server", "verify", "--journal", self.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def _count_taken_logs(replica: ServerProcess) -> int:
    return sum("took over log" in line for line in list(replica.log))


@contextmanager
def _open_cable() -> Iterator[NetworkNamespace | None]:
    try:
        cable = NetworkNamespace().__enter__()
    except NamespaceRefusedError:
        yield None
        return
    try:
        yield cable
    finally:
        cable.__exit__()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with _open_cable() as cable:
        site = Site(tmp_path_factory.mktemp("replicas"), cable)
        try:
            with site.a:
                site.b.wait_ready()
                yield site
        finally:
            site.b.__exit__()
            site.postgres.close()


def connect(replica: ServerProcess) -> grpc.Channel:
    return grpc.insecure_channel(replica.target)


def call_both(site: Site) -> HonestCallers:
    channels = [partial(connect, replica) for replica in (site.a, site.b) for _ in range(2)]
    return HonestCallers(*channels, num_tokens=NUM_TOKENS)


def assert_unharmed(site: Site, callers: HonestCallers) -> None:
    """Check that no stream broke, and that every token is on record."""
    assert callers.list_faults() == []
    assert {reason.split()[0] for reason in callers.refused} <= {"UNAVAILABLE"}
    with connect(site.a) as channel:
        # Reading has everything committed of the server that reads, and of the other what it shows.
        assert list_lost(channel, [it for it in callers.told if it.generation_id]) == []
    site.assert_nobody_lost_a_log()
    site.assert_chain_verifies()


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_the_database_is_killed_and_comes_back(site: Site, fault_rounds: range) -> None:
    site.begin()
    callers = call_both(site)
    with callers.calling():
        for seed in fault_rounds:
            chance = random.Random(seed)
            callers.await_streams()
            time.sleep(chance.uniform(0, NUM_TOKENS * STEP_S))
            site.postgres.kill()
            time.sleep(chance.uniform(*OUTAGE_S))
            site.postgres.start()
            callers.await_progress()
    print(
        f"PostgreSQL was killed {len(fault_rounds)} times: {len(callers.told)} streams, none "
        f"broken, {len(callers.refused)} requests refused meanwhile"
    )
    assert_unharmed(site, callers)


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_the_network_is_cut_for_a_moment(site: Site, fault_rounds: range) -> None:
    cable = site.require_cable()
    site.begin()
    callers = call_both(site)
    with callers.calling():
        for seed in fault_rounds:
            chance = random.Random(seed)
            callers.await_streams()
            time.sleep(chance.uniform(0, NUM_TOKENS * STEP_S))
            cable.cut()
            time.sleep(chance.uniform(*CUT_S))
            cable.mend()
            callers.await_progress()
    print(
        f"the network was cut {len(fault_rounds)} times: {len(callers.told)} streams, none broken"
    )
    assert_unharmed(site, callers)


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_a_replica_is_lost(site: Site, fault_rounds: range) -> None:
    """Its log is closed by the other one, where its callers find all that they saw."""
    for seed in fault_rounds:
        loss = LOSSES[seed % len(LOSSES)]
        if loss == "is cut off":
            site.require_cable()
        site.replace_lost()
        here = HonestCallers(*[partial(connect, site.a)] * 2, num_tokens=NUM_TOKENS)
        there = HonestCallers(*[partial(connect, site.b)] * 2, num_tokens=NUM_LONG_TOKENS)
        with here.calling():
            with there.calling():
                for callers in (here, there):
                    callers.await_streams()
                with connect(site.a) as channel:
                    before = {
                        it.generation_id: read_recorded(channel, it.generation_id)
                        for it in there.list_running()
                    }
                site.lose(loss)
            here.await_progress()
        assert here.list_faults() == [], loss
        broken = [told for told in there.told if told.error]
        assert len(broken) == 2, loss
        with connect(site.a) as channel:
            assert list_lost(channel, here.told) == [], loss
            for told in broken:
                rest = resume(channel, told.generation_id, told.last_offset)
                recorded = read_recorded(channel, told.generation_id)
                assert recorded == told.token_ids + rest, loss
                kept = before.get(told.generation_id, [])
                assert recorded[: len(kept)] == kept, loss
        site.assert_chain_verifies()
        print(f"a replica {loss}: {len(here.told)} streams of the other one, none broken")


def resume(channel: grpc.Channel, generation_id: str, after_offset: int) -> list[int]:
    """Return the tokens after an offset of a generation that was interrupted."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = g.ResumeGenerationRequest(generation_id=generation_id, after_offset=after_offset)
    answers = list(stub.ResumeGeneration(request, timeout=60))
    assert answers[-1].event.finished.finish_reason == g.FINISH_REASON_INTERRUPTED
    return [step.token_id for answer in answers for step in answer.event.steps.steps]
