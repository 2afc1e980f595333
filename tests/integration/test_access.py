"""Callers of a real server, with tokens, JWTs and certificates, over gRPC, HTTP and a socket."""

import functools
import hashlib
import http.server
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import jwt
import openai
import pytest
from certificates import Authority
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jwt.algorithms import ECAlgorithm
from long_generations import FROM_THE_BEGINNING
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from otlp_collector import Collected, collecting
from rpc_errors import failure_of
from server_process import ServerProcess, socket_target

from whence import (
    AlreadyExistsError,
    AsyncClient,
    Client,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    WhenceError,
)
from whence.audit import get_action_name
from whence.cli.main import main
from whence.v1 import generation_pb2, generation_pb2_grpc, trace_pb2, trace_pb2_grpc

SCOPES = {
    "alice": ["generate", "delete"],
    "bob": ["generate", "read", "delete"],
    "auditor": ["read:content", "read:all"],
    "counter": ["read", "read:all"],
    "scraper": ["metrics"],
    "admin": ["admin"],
}
BOB = ("authorization", "Bearer bob-secret")
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())


def make_line(name: str, scopes: list[str], secret: str) -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return json.dumps({"id": name, "sha256": digest, "scopes": scopes})


def make_jwt(**claims: object) -> str:
    whole = {"iss": "https://idp", "aud": "whence", "sub": "jane", "exp": time.time() + 60}
    return jwt.encode(whole | claims, ISSUER_KEY, "ES256", headers={"kid": "1"})


@dataclass
class Site:
    """A server and what its callers need.

    Attributes:
        callers: path of the server's file of callers.
        socket: target of its Unix socket.
        metrics_url: URL of the metrics page, without a path.
        certificate: a client's certificate and key, which name no caller.
        collected: log records that the server has sent.
    """

    server: ServerProcess
    authority: Authority
    callers: Path
    socket: str
    metrics_url: str
    certificate: tuple[Path, Path]
    collected: Collected

    def connect(self, token: str | None = None, **arguments: Any) -> Client:
        certificate, key = self.certificate
        files = {"ca": self.authority.ca, "cert": certificate, "key": key}
        options = {"connect_timeout_s": 0.0} | files | arguments
        return Client(self.server.target, token=token and f"{token}-secret", **options)

    def open_channel(self) -> grpc.Channel:
        certificate, key = self.certificate
        credentials = grpc.ssl_channel_credentials(
            self.authority.ca.read_bytes(), key.read_bytes(), certificate.read_bytes()
        )
        return grpc.secure_channel(self.server.target.removeprefix("grpcs://"), credentials)

    def get(self, path: str, token: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}-secret"} if token else {}
        context = self.authority.make_client_context()
        return httpx.get(self.metrics_url + path, headers=headers, verify=context)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An identity provider's URL of keys."""
    folder = tmp_path_factory.mktemp("provider")
    key = json.loads(ECAlgorithm.to_jwk(ISSUER_KEY.public_key())) | {"kid": "1"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [key]}))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jwks.json"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def site(
    tiny_model: Callable[..., Path], provider: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    authority = Authority(folder / "ca")
    certificate, key = authority.issue("server", "localhost", "127.0.0.1")
    stranger = authority.issue("stranger", "stranger@example.org")
    authority.issue("mesh", "mesh.example.org")
    callers = folder / "callers"
    mesh = {"id": "mesh", "certificate": "DNS:mesh.example.org", "scopes": ["generate"]}
    lines = [make_line(name, scopes, f"{name}-secret") for name, scopes in SCOPES.items()]
    callers.write_text("\n".join([*lines, json.dumps(mesh)]))
    callers.chmod(0o600)
    socket = socket_target(folder)
    flags = {
        "--listen": f"127.0.0.1:0,{socket}",
        "--http-listen": "127.0.0.1:0",
        "--metrics-listen": "127.0.0.1:0",
        "--tls-cert": str(certificate),
        "--tls-key": str(key),
        "--tls-client-ca": str(authority.ca),
        "--auth-tokens": str(callers),
        "--auth-jwks": provider,
        "--auth-jwt-issuer": "https://idp",
        "--auth-jwt-audience": "whence",
        "--socket-scopes": "generate,read:content",
        "--model-name": "tiny",
    }
    flat = [part for pair in flags.items() for part in pair]
    with collecting() as (collected, logs):
        environment = {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": logs}
        with ServerProcess(
            tiny_model("gpt2"), folder / "data", *flat, environment=environment
        ) as server:
            url = server.find_metrics()
            yield Site(server, authority, callers, socket, url, stranger, collected)


@pytest.fixture(scope="module")
def of_alice(site: Site) -> str:
    """The id of a finished generation of alice."""
    with site.connect("alice") as client, client.generate("The", max_new_tokens=4) as generation:
        assert len(list(generation)) == 4
        return generation.id


def test_owner_is_on_record_and_read_by_whoever_may(site: Site, of_alice: str) -> None:
    with site.connect("auditor") as client:
        record = client.generations.get(of_alice)
        assert record.started.owner == "alice"
        assert record.started.prompt == "The"
        steps = list(client.generations.steps(of_alice))
        assert [step.token_id for step in steps] == list(record.finished.sequences[0].token_ids)
        assert all(step.candidates for step in steps)
        assert of_alice in [it.generation_id for it in client.generations.list()]


def test_certificate_of_a_known_name_is_a_caller(site: Site) -> None:
    folder = site.authority.ca.parent
    with site.connect(cert=folder / "mesh.pem", key=folder / "mesh.key") as client:
        generation = client.generate("The", max_new_tokens=1).result()
        assert generation.started is not None
        assert generation.started.owner == "mesh"


def test_jwt_of_the_provider_is_a_caller(site: Site) -> None:
    with site.connect() as anonymous, pytest.raises(UnauthenticatedError):
        anonymous.models()
    for token, error in (
        (make_jwt(scope="generate"), None),
        (make_jwt(scope="read"), PermissionDeniedError),
        (make_jwt(scope="generate", aud="other"), UnauthenticatedError),
        (make_jwt(scope="generate", exp=1), UnauthenticatedError),
    ):
        with site.connect(metadata={"authorization": f"Bearer {token}"}) as client:
            if error is None:
                generation = client.generate("The", max_new_tokens=1).result()
                assert generation.started is not None
                assert generation.started.owner == "jane"
            else:
                with pytest.raises(error):
                    client.generate("The", max_new_tokens=1).result()


def test_generations_of_others_do_not_exist(site: Site, of_alice: str) -> None:
    unknown = str(uuid.uuid4())

    def collect_errors(client: Client, generation_id: str) -> list[tuple[str, str]]:
        calls = (
            lambda: client.generations.get(generation_id),
            lambda: list(client.generations.steps(generation_id)),
            lambda: client.generations.delete(generation_id),
            lambda: client.cancel(generation_id),
            lambda: client.fork(generation_id).result(),
        )
        told = []
        for call in calls:
            with pytest.raises(NotFoundError) as caught:
                call()
            told.append((caught.value.reason, caught.value.message.replace(generation_id, "ID")))
        return told

    with site.connect("bob") as client:
        assert collect_errors(client, of_alice) == collect_errors(client, unknown)
        assert of_alice not in [it.generation_id for it in client.generations.list()]
        with pytest.raises(AlreadyExistsError):
            # An equal request of another caller does not join the generation.
            client.generate("The", max_new_tokens=4, generation_id=of_alice).result()
    with site.open_channel() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        told = []
        for generation_id in (of_alice, unknown):
            request = generation_pb2.ResumeGenerationRequest(generation_id=generation_id)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.ResumeGeneration(request, metadata=(BOB,)))
            failure = failure_of(caught.value)
            told.append((failure.code, failure.message.replace(generation_id, "ID")))
        assert told[0] == told[1]
        # One's own is read again with `generate` alone.
        request = generation_pb2.ResumeGenerationRequest(generation_id=of_alice)
        alice = (("authorization", "Bearer alice-secret"),)
        responses = list(stub.ResumeGeneration(request, metadata=alice))
        assert responses[-1].event.HasField("finished")


def find_position(client: Client, generation_id: str) -> str:
    """Return the position after a generation's end.

    A watch from now on begins when its call has come to the server, which is not before another
    call that is made after it.
    """
    with client.generations.watch(after_position=FROM_THE_BEGINNING) as watch:
        for update in watch:
            if update.generation_id == generation_id and update.event.HasField("finished"):
                return update.position
    raise AssertionError("the watch ended")


def test_watch_shows_ones_own_alone(site: Site) -> None:
    with site.connect("bob") as bob, site.connect("counter") as counter:
        with site.connect("alice") as alice, site.connect("auditor") as auditor:
            now = find_position(auditor, alice.generate("A", max_new_tokens=1).result().id)
            watches = [client.generations.watch(after_position=now) for client in (bob, counter)]
            hers = alice.generate("A", max_new_tokens=2).result().id
        his = bob.generate("B", max_new_tokens=2).result().id
        seen: list[list[Any]] = []
        for watch in watches:
            seen.append([])
            for update in watch:
                seen[-1].append(update)
                if update.generation_id == his and update.event.HasField("finished"):
                    break
            watch.close()
    assert {update.generation_id for update in seen[0]} == {his}
    assert {update.generation_id for update in seen[1]} == {hers, his}
    for updates in seen:
        (started,) = [
            it.event.started
            for it in updates
            if it.generation_id == his and it.event.HasField("started")
        ]
        assert (started.prompt, started.owner) == ("", "bob"), "`read` shows no text"


def test_read_shows_numbers_and_no_content(site: Site, of_alice: str) -> None:
    with site.connect("counter") as client:
        record = client.generations.get(of_alice)
        steps = list(client.generations.steps(of_alice))
    assert record.summary.num_generated_tokens == 4
    assert (record.summary.prompt_preview, record.started.prompt) == ("", "")
    assert not record.finished.sequences[0].token_ids
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert all(step.logprob < 0 and not step.text for step in steps)
    assert all(step.entropy and not step.candidates and not step.token_id for step in steps)


def test_delete_and_cancel_are_for_owners_and_administrators(site: Site) -> None:
    with site.connect("alice") as alice, site.connect("admin") as administrator:
        running = alice.generate("The", max_new_tokens=1000)
        next(running)
        administrator.cancel(running.id)
        assert running.result().finished is not None
        with site.connect("auditor") as auditor:
            cancelled = [
                it.cancelled.caller.identity
                for it in auditor.generations.get(running.id).occurrences
                if it.HasField("cancelled")
            ]
            assert cancelled == ["admin"]
            with pytest.raises(PermissionDeniedError, match="needs: delete"):
                auditor.generations.delete(running.id)
        alice.generations.delete(running.id)
        with pytest.raises(NotFoundError):
            alice.generations.delete(running.id)


def test_openai_client_uses_its_key_as_the_token(site: Site) -> None:
    context = site.authority.make_client_context(site.certificate)

    def connect(key: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{site.server.http_url}/v1",
            api_key=key,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(verify=context),
        )

    with connect("alice-secret") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        answer = client.completions.create(model="tiny", prompt="The", max_tokens=2)
        generation_id = answer.id.removeprefix("cmpl-")
    with site.connect("auditor") as auditor:
        assert auditor.generations.get(generation_id).started.owner == "alice"
    with connect("wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.completions.create(model="tiny", prompt="The")
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with connect("auditor-secret") as client, pytest.raises(openai.PermissionDeniedError):
        client.completions.create(model="tiny", prompt="The")


def test_audit_tells_who_did_what_and_why(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    why = {"whence-reason": "L%C3%B6schung 4711"}
    with site.connect("alice", metadata=why) as alice:
        done = alice.generate("The", max_new_tokens=1).result().id
        branch = alice.fork(done, seed=1).result().id
        with site.connect("auditor") as auditor, site.connect("counter") as counter:
            for _ in range(5):
                auditor.generations.get(done)
            counter.generations.get(done)
        alice.generations.delete(done)
        with pytest.raises(NotFoundError):
            alice.generations.delete(done)
        with pytest.raises(PermissionDeniedError):
            list(alice.audit())
    with site.connect("admin") as admin:
        records = list(admin.audit(generation_id=done))
        told = [
            (get_action_name(it.action), it.caller_id, it.status_code, it.reason)
            for it in reversed(records)
        ]
        # If a minute ended meanwhile, equal calls have a record in each of the two.
        told = list(dict.fromkeys(told))
        reason = "Löschung 4711"
        assert told == [
            ("generate", "alice", 0, reason),
            ("read_content", "auditor", 0, ""),
            ("read", "counter", 0, ""),
            ("delete", "alice", 0, reason),
            ("delete", "alice", 5, reason),
        ], "equal calls are counted at the minute's end, and the record survives the deletion"
        assert {it.address for it in records} == {"127.0.0.1"}
        (forked,) = admin.audit(generation_id=branch)
        assert (get_action_name(forked.action), forked.detail) == ("generate", done)
        refusals = list(admin.audit(actions=["refused"], caller_id="alice"))
        assert [(it.detail, it.method.rpartition("/")[2]) for it in refusals] == [
            ("scope", "ListAudit")
        ]
        assert list(admin.audit(actions=["read_audit"], caller_id="admin"))
        (export,) = admin.audit(actions=["export"])
        assert export.detail.startswith("otlp-audit to http://127.0.0.1:")
    certificate, key = (str(path) for path in site.certificate)
    flags = ["--target", site.server.target, "--ca", str(site.authority.ca), "--cert", certificate]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHENCE_TOKEN", "admin-secret")
        command = ["audit", *flags, "--key", key, "--generation", done, "--action", "delete"]
        assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "NOT_FOUND" in lines[0]
    assert f"DeleteGeneration  {done}  from 127.0.0.1  reason: {reason}" in lines[1]


def test_audit_is_sent_as_log_records(site: Site, of_alice: str) -> None:
    with site.connect("admin") as admin:
        (record,) = admin.audit(generation_id=of_alice, caller_id="alice", actions=["generate"])

    def find() -> list[LogRecord]:
        return [it for it in site.collected.records if it.span_id.hex() == record.span_id]

    deadline = time.monotonic() + 30
    while not find() and time.monotonic() < deadline:
        time.sleep(0.05)
    (sent,) = find()
    assert (sent.event_name, sent.trace_id.hex()) == ("whence.audit", record.trace_id)
    values = {it.key: it.value for it in sent.attributes}
    assert values["whence.audit.action"].string_value == "generate"
    assert values["whence.audit.caller"].string_value == "alice"
    assert values["whence.generation.id"].string_value == of_alice


def test_refused_resume_puts_nothing_on_anothers_record(site: Site, of_alice: str) -> None:
    """Expect no CALL entry: a deletion names the number of the generation's entries."""
    with site.open_channel() as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.ResumeGenerationRequest(generation_id=of_alice)
        for _ in range(3):
            with pytest.raises(grpc.RpcError):
                list(stub.ResumeGeneration(request, metadata=(BOB,)))
    with site.connect("admin") as admin:
        # One for the first of each minute, with those of another test.
        tried = list(admin.audit(caller_id="bob", generation_id=of_alice, actions=["read_content"]))
    assert {it.status_code for it in tried} == {5}


def test_unix_socket_has_the_scopes_that_are_set(site: Site) -> None:
    with Client(site.socket) as client:
        generation = client.generate("The", max_new_tokens=1).result()
        assert generation.started is not None
        assert generation.started.owner == "unix"
        assert generation.id in [it.generation_id for it in client.generations.list()]
        with pytest.raises(PermissionDeniedError):
            client.generations.delete(generation.id)
    with Client(site.socket, token="wrong") as client, pytest.raises(UnauthenticatedError):
        client.models()


def test_metrics_need_their_scope_and_health_does_not(site: Site) -> None:
    assert site.get("/metrics").status_code == 401
    assert site.get("/metrics", "alice").status_code == 403
    page = site.get("/metrics", "scraper")
    assert page.status_code == 200
    assert site.get("/healthz").status_code == 200
    (missing,) = [
        float(line.rpartition(" ")[2])
        for line in page.text.splitlines()
        if line.startswith("whence_calls_refused_total") and '"missing"' in line
    ]
    assert missing >= 1
    assert not [line for line in site.server.log if "secret" in line]


def test_health_over_grpc_is_public_and_reflection_is_not(site: Site) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with site.open_channel() as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter([request])))
        assert failure_of(caught.value).code is grpc.StatusCode.UNAUTHENTICATED
        scraper = (("authorization", "Bearer scraper-secret"),)
        (answer,) = reflect(iter([request]), metadata=scraper)
        assert len(answer.list_services_response.service) > 4


def test_refused_calls_are_not_read_and_not_on_record(site: Site) -> None:
    """Expect the refusal before the request is looked at: it is no message at all."""
    with site.open_channel() as channel:
        for name in ("GenerationService/Generate", "TraceService/GetGeneration"):
            call = channel.unary_stream(f"/whence.v1.{name}")
            with pytest.raises(grpc.RpcError) as caught:
                list(call(b"\xff\xff"))
            assert failure_of(caught.value).reason == "UNAUTHENTICATED"


async def test_renewed_token_is_read_for_the_next_call(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("alice-secret\n")
    certificate, key = site.certificate
    async with AsyncClient(
        site.server.target,
        ca=site.authority.ca,
        cert=certificate,
        key=key,
        token_file=file,
        connect_timeout_s=0.0,
    ) as client:
        await client.models()
        file.write_text("wrong")
        with pytest.raises(UnauthenticatedError):
            await client.models()
        file.unlink()
        with pytest.raises(UnauthenticatedError, match="cannot be read") as caught:
            await client.models()
        assert caught.value.reason == "TOKEN_UNREADABLE"
        file.write_text("alice-secret")
        await client.models()


def test_command_takes_the_token_from_a_file(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("alice-secret")
    files = ("--ca", site.authority.ca, "--cert", site.certificate[0], "--key", site.certificate[1])
    arguments = [str(it) for it in ("--target", site.server.target, *files)]
    assert main(["model", *arguments, "--token-file", str(tmp_path / "token")]) == 0
    assert "tiny" in capsys.readouterr().out
    assert main(["model", *arguments]) != 0
    assert "UNAUTHENTICATED" in capsys.readouterr().err


def test_token_is_not_sent_unencrypted_to_another_machine() -> None:
    with pytest.raises(
        ValueError, match=r"would travel unencrypted; write https://whence\.example"
    ):
        Client("whence.example:50051", token="secret")
    with Client("127.0.0.1:1", token="secret"), Client("https://whence.example:1", token="secret"):
        pass
    with pytest.raises(ValueError, match="expected printable ASCII") as caught:
        Client("127.0.0.1:1", token="sec ret")
    assert "sec ret" not in str(caught.value)


def test_jwt_that_expires_ends_the_calls_that_it_began(site: Site) -> None:
    # A clock may be off by 30 s.
    token = make_jwt(scope="read", exp=time.time() - 27)
    with site.open_channel() as channel:
        stub = trace_pb2_grpc.TraceServiceStub(channel)
        watch = stub.WatchGenerations(
            trace_pb2.WatchGenerationsRequest(),
            metadata=(("authorization", f"Bearer {token}"),),
            timeout=60,
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
    assert failure_of(caught.value).reason == "UNAUTHENTICATED"


# The last test, because it changes the callers.
def test_line_that_is_gone_revokes_its_token(site: Site) -> None:
    lines = site.callers.read_text().splitlines()
    with site.connect("bob") as client, site.connect("auditor") as auditor:
        client.models()
        with site.connect("alice") as alice:
            now = find_position(auditor, alice.generate("A", max_new_tokens=1).result().id)
        ended, going_on = (it.generations.watch(after_position=now) for it in (client, auditor))
        kept = [line for line in lines if '"bob"' not in line]
        (site.callers.parent / "next").write_text("\n".join(kept))
        (site.callers.parent / "next").chmod(0o600)
        (site.callers.parent / "next").rename(site.callers)
        with pytest.raises(UnauthenticatedError) as caught:
            client.models()
        assert isinstance(caught.value, WhenceError)
        with pytest.raises(UnauthenticatedError):
            list(ended)
        with site.connect("alice") as alice:
            alice.generate("The", max_new_tokens=1).result()
        assert next(going_on).event.started.owner == "alice", "calls of others go on"
        going_on.close()
    with site.connect("admin") as admin:
        (change,) = admin.audit(actions=["change"])
        assert change.detail == str(site.callers)
