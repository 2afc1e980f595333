"""Two servers on one PostgreSQL database, behind TLS and JWTs: nothing is lost when one dies.

The record is encrypted, under keys that both servers share.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from identity_provider import IdentityProvider
from rpc_errors import failure_of
from sealed_journals import MASTER, write_keys
from server_process import ServerProcess, socket_target
from tcp_relay import TcpRelay

from whence import Client, FailedPreconditionError, UnavailableError
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc

if TYPE_CHECKING:
    from postgres import PostgresServer

APP = "system:serviceaccount:shop:app"
AUDITOR = "system:serviceaccount:ops:auditor"
# No other test writes these words to the database, in clear.
PROMPT, OUTPUT, LABEL = "pangolin xylophone", "axolotl theremin", "okapi"
LONG_PROMPT = "capybara ocarina"


@dataclass(frozen=True)
class Replica:
    """One of the servers.

    Attributes:
        process: its process.
        socket: its Unix socket, over which callers may do everything.
    """

    process: ServerProcess
    socket: str

    @property
    def address(self) -> str:
        """HOST:PORT for callers with TLS."""
        return self.process.target.removeprefix("grpcs://")


@dataclass(frozen=True)
class Site:
    """Two replicas with what they share.

    Attributes:
        url: address of the database.
        seen_early: what a caller got before the provider was there, and the health then.
    """

    a: Replica
    b: Replica
    url: str
    authority: Authority
    provider: IdentityProvider
    seen_early: tuple[UnavailableError, int]

    def connect(self, address: str, caller: str = APP, **arguments: Any) -> Client:
        token = self.provider.sign("whence", sub=caller)
        return Client(f"https://{address}", ca=self.authority.ca, token=token, **arguments)


def start(
    model: Path, folder: Path, url: str, authority: Authority, provider: IdentityProvider
) -> Replica:
    certificate, key = authority.issue("server", "127.0.0.1", "localhost")
    socket = socket_target(folder)
    flags = {
        "--listen": f"127.0.0.1:0,{socket}",
        "--journal-lease": "2",
        "--journal-key": str(write_keys(folder.with_name("master.key"), MASTER)),
        "--retain": "180d",
        "--hold-label": "matter=*",
        "--tls-cert": str(certificate),
        "--tls-key": str(key),
        "--auth-jwks": provider.jwks_url,
        "--auth-jwt-issuer": provider.issuer,
        "--auth-jwt-audience": "whence",
        # Service accounts of Kubernetes have no claim for scopes.
        "--auth-jwt-scope-claim": "sub",
    }
    scopes = {APP: ["generate", "read:content", "delete"], AUDITOR: ["admin"]}
    flat = [part for pair in flags.items() for part in pair]
    for caller, given in scopes.items():
        flat += [part for it in given for part in ("--auth-jwt-scope", f"{caller}={it}")]
    # The variable keeps a password out of the list of processes.
    environment = {"WHENCE_JOURNAL": url, "SSL_CERT_FILE": str(authority.ca)}
    return Replica(ServerProcess(model, folder, *flat, environment=environment), socket)


def ask_health(replica: Replica) -> int:
    with grpc.insecure_channel(replica.socket) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest()).status)


@pytest.fixture(scope="module")
def site(
    tiny_model: Callable[..., Path],
    postgres: "PostgresServer",
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("shared")
    url, model = postgres.make_journal_url(str(folder)), tiny_model("gpt2-long")
    authority = Authority(folder / "ca")
    provider = IdentityProvider(authority)
    a = start(model, folder / "a", url, authority, provider)
    b = start(model, folder / "b", url, authority, provider)
    with a.process, b.process:
        token = provider.sign("whence", sub=APP)
        with (
            Client(a.process.target, ca=authority.ca, token=token) as client,
            pytest.raises(UnavailableError) as caught,
        ):
            client.models()
        early = caught.value, ask_health(a)
        provider.start()
        yield Site(a, b, url, authority, provider, early)
    provider.close()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_keys(tmp_path_factory.mktemp("keys") / "master.key", MASTER))


def verify(url: str, key_file: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "whence_server", "verify", "--journal", url),
            *("--journal-key", key_file),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def find_content(postgres: "PostgresServer") -> list[str]:
    """Return the words that are in clear in a file of the database, its logs included."""
    files = postgres.read_files()
    words = (*PROMPT.split(), *OUTPUT.split(), LABEL, *LONG_PROMPT.split())
    return [word for word in words if word.encode() in files]


def test_servers_wait_for_an_identity_provider_that_is_away(site: Site) -> None:
    error, health = site.seen_early
    assert (error.reason, health) == ("PROVIDER_AWAY", health_pb2.HealthCheckResponse.NOT_SERVING)
    deadline = time.monotonic() + 60
    for replica in (site.a, site.b):
        while ask_health(replica) != health_pb2.HealthCheckResponse.SERVING:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with site.connect(replica.address) as client:
            assert client.models()


def test_generations_of_one_server_are_read_and_deleted_through_the_other(
    site: Site, postgres: "PostgresServer", key_file: str
) -> None:
    with site.connect(site.a.address) as first, site.connect(site.b.address) as second:
        first.wait_ready(60)
        second.wait_ready(60)
        with first.generate(PROMPT, forced=OUTPUT, labels={"animal": LABEL}) as generation:
            text, generation_id = "".join(t.text for t in generation), generation.id
        # The stream ends before the commit under `group`.
        first.generations.get(generation_id)
        request = g.ResumeGenerationRequest(generation_id=generation_id)
        with grpc.insecure_channel(site.b.socket) as channel:
            resumed = generation_pb2_grpc.GenerationServiceStub(channel).ResumeGeneration(request)
            steps = [step for answer in resumed for step in answer.event.steps.steps]
        assert "".join(step.text for step in steps) == text
        assert generation_id in [row.generation_id for row in second.generations.list()]
        assert find_content(postgres) == []
        second.generations.delete(generation_id)
        with grpc.insecure_channel(site.b.socket) as channel:
            stub = trace_pb2_grpc.TraceServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=generation_id))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert find_content(postgres) == []
    done = verify(site.url, key_file)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hold_binds_who_asks_the_other_server(site: Site) -> None:
    with site.connect(site.a.address) as first, site.connect(site.b.address) as second:
        first.wait_ready(60)
        with first.generate("held", max_new_tokens=2, labels={"matter": "x"}) as generation:
            generation_id = generation.result().id
        first.generations.get(generation_id)  # the stream ends before the commit
        with pytest.raises(FailedPreconditionError, match=r"--hold-label matter=\*"):
            second.generations.delete(generation_id)


def test_either_server_lists_who_did_what_at_both(site: Site) -> None:
    ids = []
    for replica in (site.a, site.b):
        with site.connect(replica.address) as client:
            client.wait_ready(60)
            with client.generate("audited", max_new_tokens=1) as generation:
                ids.append(generation.result().id)
    # A record of the other server is listed once it is committed.
    deadline = time.monotonic() + 60
    for replica in (site.a, site.b):
        with site.connect(replica.address, AUDITOR) as auditor:
            while True:
                found = [
                    it.generation_id for it in auditor.audit(caller_id=APP, actions=["generate"])
                ]
                if found[:2] == ids[::-1]:
                    break
                assert time.monotonic() < deadline, (found, ids)
                time.sleep(0.05)


def test_a_killed_servers_generation_is_closed_and_its_stream_goes_on_at_the_other(
    site: Site, postgres: "PostgresServer", key_file: str
) -> None:
    a, b = site.a.process, site.b.process
    engine = psutil.Process(a.engine_pid)
    with TcpRelay(site.a.address) as service, site.connect(service.target) as client:
        client.wait_ready(60)
        generation = client.generate(
            LONG_PROMPT, sample=True, seed=1, max_new_tokens=8_000, ignore_eos=True
        )
        seen = [token.token_id for _, token in zip(range(50), generation, strict=False)]
        with grpc.insecure_channel(site.b.socket) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            # Its tokens reach the caller before its start is committed.
            reason, deadline = "GENERATION_NOT_FOUND", time.monotonic() + 60
            while reason == "GENERATION_NOT_FOUND" and time.monotonic() < deadline:
                with pytest.raises(grpc.RpcError) as caught:
                    stub.CancelGeneration(g.CancelGenerationRequest(generation_id=generation.id))
                reason = failure_of(caught.value).reason
            assert reason == "GENERATION_ELSEWHERE"
            # The other server reads the generation while it runs.
            request = g.ResumeGenerationRequest(generation_id=generation.id)
            followed: list[int] = []
            for response in stub.ResumeGeneration(request):
                followed.extend(step.token_id for step in response.event.steps.steps)
                if len(followed) > 20 and a.process.poll() is None:
                    service.lead_to(site.b.address)
                    a.kill()
        # The caller's stream goes on by itself at the server that is left.
        seen.extend(token.token_id for token in generation)
    engine.wait(60)
    assert generation.finished is not None
    assert generation.finished.finish_reason == g.FINISH_REASON_INTERRUPTED
    # Every token on record was told, in its order. The caller had at most 20 ms more.
    num_recorded = generation.finished.num_generated_tokens
    assert len(followed) == num_recorded
    assert followed == seen[:num_recorded]
    assert len(seen) - num_recorded == generation.num_unrecorded_tokens
    assert find_content(postgres) == []
    done = verify(site.url, key_file)
    assert (done.returncode, done.stderr) == (0, "")
    b.wait_line("took over log")
    # The survivor still serves, and its audit has what the dead one's callers did.
    with site.connect(site.b.address) as left, left.generate("two", max_new_tokens=4) as after:
        assert len(list(after)) == 4
    with site.connect(site.b.address, AUDITOR) as auditor:
        found = auditor.audit(generation_id=generation.id, actions=["generate"])
        assert [record.caller_id for record in found] == [APP]


def test_no_log_has_the_address_of_the_database(site: Site) -> None:
    for replica in (site.a, site.b):
        assert site.url not in "".join(replica.process.log)
