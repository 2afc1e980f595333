"""One server under load whose secrets, clock and disk change, and which strangers storm.

Its honest callers' streams go on with the right tokens, what they saw is on record, nobody is let
in who may not, and the chain verifies. CHAOS_SEED repeats a round.
"""

import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EIO
from functools import partial

import grpc
import jwt
import psutil
import pytest
from awaiting import await_that
from honest_callers import HonestCallers, list_lost, read_recorded
from ruled_server import ANSWER_S, KEY, RuledServer, make_header
from server_process import ServerProcess
from slow_clients import OF_GRPC, OF_HTTP, SlowClient, list_patient

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

NUM_TOKENS = 100
CLOSED_S = 120.0
"""Seconds within which every slow connection is closed; the server's longest limit is 30."""
STREAM_S = 120.0
"""Seconds within which the server ends a stream whose caller may not call any more."""
HOUR_S = 3_600
NUM_CHANGES = 5
NUM_SLOW = 8
"""Slow connections of each habit to each port."""
NUM_CANCELLED = 300


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuledServer]:
    site = RuledServer(tmp_path_factory.mktemp("ruled"))
    with site.server:
        yield site


@pytest.fixture
def callers(site: RuledServer) -> HonestCallers:
    headers = partial(make_header, "honest")
    return HonestCallers(*[site.connect] * 3, num_tokens=NUM_TOKENS, headers=headers)


def assert_unharmed(site: RuledServer, callers: HonestCallers) -> None:
    """Check that no stream broke, no honest request was refused, and every token is on record."""
    assert callers.list_faults() == []
    assert callers.refused == []
    with site.connect() as channel:
        assert list_lost(channel, callers.told, make_header("honest")) == []
    site.assert_chain_verifies()
    assert site.server.process.poll() is None
    assert site.count_tracebacks() == site.num_known_tracebacks, "".join(site.server.log)


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_secrets_are_replaced(
    site: RuledServer, callers: HonestCallers, fault_rounds: range
) -> None:
    num_asked = 0
    with callers.calling():
        for seed in fault_rounds:
            chance = random.Random(seed)
            for _ in range(NUM_CHANGES):
                callers.await_streams()
                site.renew_certificate()
                assert site.ask("honest") == "OK", seed
                names = chance.sample(["other", "third", "fourth"], chance.randint(0, 3))
                # Torn in the middle, as an editor leaves it: the callers of before stay valid.
                site.write_callers("honest", *names, whole=chance.random() < 0.5)
                assert site.ask("honest") == "OK", seed
                site.write_callers("honest", *names)
                for name in ("honest", "other", "third", "fourth", "stranger"):
                    expected = "OK" if name in ("honest", *names) else "UNAUTHENTICATED"
                    assert site.ask(name) == expected, (seed, name, names)
                    num_asked += 1
            callers.await_progress()
    print(
        f"secret files were replaced {len(fault_rounds) * NUM_CHANGES} times: {len(callers.told)} "
        f"streams, none broken; {num_asked} callers, each let in or refused as the new file says"
    )
    assert_unharmed(site, callers)


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_the_clock_jumps(site: RuledServer, callers: HonestCallers, fault_rounds: range) -> None:
    with callers.calling():
        for seed in fault_rounds:
            chance = random.Random(seed)
            site.write_callers("honest", "brief")
            valid, expired = (make_jwt(time.time() + minutes * 60) for minutes in (10, -10))
            callers.await_streams()
            assert [site.ask(it) for it in (valid, "brief", expired)] == [
                *("OK", "OK", "UNAUTHENTICATED")
            ]
            with site.connect() as channel:
                stream = start_endless(channel, valid)
                next(stream)
                site.shim.jump(chance.randint(HOUR_S, 400 * 24 * HOUR_S))
                with pytest.raises(grpc.RpcError) as ended:
                    for _ in stream:
                        pass
                assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED, seed
            for token in (valid, "brief", expired):
                assert site.ask(token) == "UNAUTHENTICATED", seed
            callers.await_progress()
            # Behind its time, the server cannot know that a JWT has expired meanwhile.
            site.shim.jump(-chance.randint(HOUR_S, 24 * HOUR_S))
            assert [site.ask(it) for it in (valid, "brief", "stranger")] == [
                *("OK", "OK", "UNAUTHENTICATED")
            ]
            callers.await_progress()
            site.shim.jump(0)
            assert site.ask(expired) == "UNAUTHENTICATED", seed
    print(
        f"the clock jumped {3 * len(fault_rounds)} times: {len(callers.told)} streams of callers "
        "whose tokens do not expire, none broken; expired tokens were refused"
    )
    assert_unharmed(site, callers)


def make_jwt(end_s: float) -> str:
    claims = {"iss": "https://idp", "aud": "whence", "sub": "jane", "scope": "generate"}
    return jwt.encode(claims | {"exp": int(end_s)}, KEY, "ES256", headers={"kid": "1"})


def start_endless(channel: grpc.Channel, token: str) -> "grpc.CallIterator[g.GenerateResponse]":
    request = g.GenerateRequest(
        prompt="The quick", decoding=g.Decoding(max_new_tokens=6_000, ignore_eos=True)
    )
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return stub.Generate(request, timeout=STREAM_S, metadata=make_header(token))


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_fsync_fails(site: RuledServer, fault_rounds: range) -> None:
    headers = partial(make_header, "honest")
    callers = HonestCallers(*[site.connect] * 3, num_tokens=NUM_TOKENS, headers=headers)
    with callers.calling():
        for seed in fault_rounds:
            chance = random.Random(seed)
            callers.await_streams()
            num_lines = len(site.server.log)
            site.shim.fail_fsync(EIO)
            try:
                await_that(
                    partial(finds_line, site.server, num_lines, "cannot be written"),
                    "the journal notices the disk",
                )
                time.sleep(chance.uniform(0.1, 3.0))
                shown = [(it.generation_id, list(it.token_ids)) for it in callers.list_running()]
                with site.connect() as channel:
                    for generation_id, token_ids in filter(all, shown):
                        recorded = read_recorded(channel, generation_id, make_header("honest"))
                        # Strict: nothing is shown that is not on the disk.
                        assert recorded[: len(token_ids)] == token_ids, seed
            finally:
                site.shim.fail_fsync(0)
            callers.await_progress()
    print(f"fsync failed {len(fault_rounds)} times: {len(callers.told)} streams, none broken")
    # New requests are refused while it fails.
    assert {reason.split()[1] for reason in callers.refused} <= {"JOURNAL_UNWRITABLE"}
    callers.refused.clear()
    site.num_known_tracebacks = site.count_tracebacks()  # The log has the disk's error.
    assert_unharmed(site, callers)


def finds_line(server: ServerProcess, first: int, words: str) -> bool:
    return any(words in line for line in server.log[first:])


@pytest.mark.timeout(0)  # as many rounds as are asked for; every wait has a bound
def test_calls_are_cancelled_in_storms(
    site: RuledServer, callers: HonestCallers, fault_rounds: range
) -> None:
    process = psutil.Process(site.server.pid)
    site.write_callers("honest", "other")
    ends: Counter[str] = Counter()
    with callers.calling():
        callers.await_streams()
        storm_all_ports(site, fault_rounds[0], ends)  # The first one fills caches and pools.
        before = process.memory_info().rss
        for seed in fault_rounds:
            callers.await_streams()
            storm_all_ports(site, seed, ends)
            assert site.ask("honest") == "OK", seed
            callers.await_progress()
    print(f"calls were cancelled in storms: {dict(ends)}; {len(callers.told)} streams, none broken")
    assert ends["stranger let in"] == 0
    assert process.memory_info().rss - before < 256 << 20
    assert_unharmed(site, callers)


def storm_all_ports(site: RuledServer, seed: int, ends: Counter[str]) -> None:
    """Start calls on all ports and cancel them."""
    storms = [
        partial(storm_grpc, site, random.Random(seed), "other", ends),
        partial(storm_grpc, site, random.Random(seed), "stranger", ends),
        partial(storm_http, site, random.Random(seed), "HTTP", ends),
        partial(storm_http, site, random.Random(seed), "metrics", ends),
    ]
    with ThreadPoolExecutor(len(storms)) as threads:
        for storm in [threads.submit(storm) for storm in storms]:
            storm.result()


def storm_grpc(site: RuledServer, chance: random.Random, token: str, ends: Counter[str]) -> None:
    """Start generations and cancel each at a random moment, most of them at once."""
    with site.connect() as channel:
        for _ in range(NUM_CANCELLED):
            stream = start_endless(channel, token)
            try:
                for _ in range(chance.choice((0, 0, 0, 1, 3))):
                    next(stream)
                    if token == "stranger":
                        ends["stranger let in"] += 1
            except grpc.RpcError as error:
                ends[error.code().name] += 1
            finally:
                stream.cancel()
            ends["gRPC"] += 1


def storm_http(site: RuledServer, chance: random.Random, port: str, ends: Counter[str]) -> None:
    """Send requests, and close the connection before most of the answers."""
    body = json.dumps({"prompt": "The quick", "max_tokens": 6_000, "stream": True})
    headers = {"Authorization": "Bearer other", "Content-Type": "application/json"}
    context = site.authority.make_client_context()
    method, path = ("POST", "/v1/completions") if port == "HTTP" else ("GET", "/metrics")
    for _ in range(NUM_CANCELLED // 3):
        host, number = site.list_addresses()[port]
        connection = http.client.HTTPSConnection(host, number, timeout=ANSWER_S, context=context)
        with suppress(OSError, http.client.HTTPException):
            connection.request(method, path, body if port == "HTTP" else None, headers)
            if chance.random() < 0.2:
                connection.getresponse().read(100)
        connection.close()
        ends[port] += 1


@pytest.mark.timeout(0)  # every wait has a bound
def test_slow_connections_on_all_ports_are_closed(
    site: RuledServer, callers: HonestCallers
) -> None:
    plain = site.authority.make_client_context()
    http2 = site.authority.make_client_context()
    http2.set_alpn_protocols(["h2"])
    slow: list[SlowClient] = []
    with callers.calling():
        callers.await_streams()
        for name, address in site.list_addresses().items():
            habits, context = (OF_GRPC, http2) if name == "gRPC" else (OF_HTTP, plain)
            slow += [SlowClient(address, it, context) for it in habits for _ in range(NUM_SLOW)]
        num_answered = 0

        def ask() -> None:
            nonlocal num_answered
            assert site.ask("honest") == "OK"
            num_answered += 1

        patient = list_patient(slow, CLOSED_S, ask)
        callers.await_progress()
    print(
        f"{len(slow)} slow connections on three ports: all closed by the server; {num_answered} "
        f"calls answered and {len(callers.told)} streams read meanwhile"
    )
    assert Counter(patient) == {}
    assert_unharmed(site, callers)
