"""The gate: who is let in, by which credentials, and what a refusal says."""

import asyncio
import hashlib
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from whence_server.access.credentials import (
    Credentials,
    list_certificate_names,
    list_peer_names,
)
from whence_server.access.failures import Cause, Failures
from whence_server.access.gate import LOCAL_SOCKET, OPEN_GATE, Gate
from whence_server.access.jwt_tokens import JwtVerifier, Verified
from whence_server.access.scope_table import TABLE
from whence_server.access.token_file import TokenFile
from whence_server.domain.errors import (
    CallerLimitError,
    ScopeMissingError,
    UnauthenticatedError,
)
from whence_server.domain.identity import ANYONE, Identity, Scope

GENERATE = "whence.v1.GenerationService/Generate"
MODELS = "whence.v1.ModelService/ListModels"
LIST = "whence.v1.TraceService/ListGenerations"


def make_entry(name: str, token: str, *scopes: str, **fields: str) -> str:
    digest = hashlib.sha256(token.encode()).hexdigest()
    return json.dumps({"id": name, "sha256": digest, "scopes": scopes} | fields) + "\n"


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    path = tmp_path / "callers"
    certificate = {"id": "mesh", "certificate": "URI:spiffe://x/mesh", "scopes": ["generate"]}
    path.write_text(
        make_entry("alice", "a-secret", "generate")
        + make_entry("old", "o-secret", "generate", expires="2020-01-01T00:00:00Z")
        + json.dumps(certificate)
    )
    return TokenFile(path)


def bearer(token: str) -> Credentials:
    return Credentials(f"Bearer {token}", address="192.0.2.7")


async def test_open_gate_admits_everybody_to_everything() -> None:
    for name in (*TABLE, "whence.v1.NewService/New"):
        assert (await OPEN_GATE.admit(name, Credentials())).identity is ANYONE


async def test_scheme_of_the_header_is_read_in_any_case(tokens: TokenFile) -> None:
    gate = Gate(tokens)
    for header in ("Bearer a-secret", "bearer a-secret", " BEARER  a-secret "):
        identity = (await gate.admit(GENERATE, Credentials(header))).identity
        assert identity.id == "alice"


@pytest.mark.parametrize(
    ("credentials", "cause"),
    [
        (Credentials(), Cause.MISSING),
        (Credentials("Basic YTpi"), Cause.INVALID),
        (Credentials("Bearer"), Cause.INVALID),
        (bearer("b-secret"), Cause.UNKNOWN),
        (bearer("a.b.c"), Cause.UNKNOWN),
        (bearer("o-secret"), Cause.EXPIRED),
        (Credentials(names=("URI:spiffe://x/other", "CN:spiffe://x/mesh")), Cause.UNKNOWN),
        # A token that is not accepted is no caller with a certificate.
        (Credentials("Bearer no", ("URI:spiffe://x/mesh",)), Cause.UNKNOWN),
        (Credentials("Bearer no", is_local_socket=True), Cause.UNKNOWN),
    ],
)
async def test_all_refusals_read_the_same_and_are_counted_by_cause(
    tokens: TokenFile,
    credentials: Credentials,
    cause: Cause,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate(tokens, socket_scopes=Scope)
    with pytest.raises(UnauthenticatedError) as caught:
        await gate.admit(GENERATE, credentials)
    assert caught.value.message == UnauthenticatedError().message
    assert {k: n for k, n in gate.failures.counts.items() if n} == {cause: 1}
    (told,) = caplog.messages
    assert told.startswith(f"{GENERATE} refused a call from ")
    assert "secret" not in told


async def test_missing_scope_is_named_and_another_is_not_enough(tokens: TokenFile) -> None:
    gate = Gate(tokens)
    with pytest.raises(ScopeMissingError) as caught:
        await gate.admit(LIST, bearer("a-secret"))
    assert caught.value.message.endswith("this needs: read or read:content")
    assert gate.failures.counts[Cause.SCOPE] == 1
    assert (await gate.admit(MODELS, bearer("a-secret"))).identity.id == "alice"
    with pytest.raises(ScopeMissingError):
        await gate.admit("whence.v1.NewService/New", bearer("a-secret"))


async def test_certificate_names_a_caller(tokens: TokenFile) -> None:
    gate = Gate(tokens)
    identity = (
        await gate.admit(GENERATE, Credentials(names=("CN:x", "URI:spiffe://x/mesh")))
    ).identity
    assert identity.id == "mesh"
    both = Credentials("Bearer a-secret", ("URI:spiffe://x/mesh",))
    assert (await gate.admit(GENERATE, both)).identity.id == "alice", (
        "the token is the narrower one"
    )


async def test_unix_socket_is_a_caller_with_the_configured_scopes(tokens: TokenFile) -> None:
    local = Credentials(is_local_socket=True)
    gate = Gate(tokens, socket_scopes=[Scope.GENERATE])
    assert (await gate.admit(GENERATE, local)).identity.id == "unix"
    with pytest.raises(ScopeMissingError):
        await gate.admit(LIST, local)
    with pytest.raises(UnauthenticatedError):
        await Gate(tokens).admit(GENERATE, local)


async def test_nobody_takes_the_id_of_unix_sockets_by_a_claim() -> None:
    class Verifier:
        has_form = staticmethod(JwtVerifier.has_form)

        async def verify(self, token: str) -> Verified:
            return Verified(Identity(token.partition(".")[0], frozenset(Scope)), math.inf)

    gate = Gate(jwts=cast("JwtVerifier", Verifier()), socket_scopes=Scope)
    assert (await gate.admit(LIST, Credentials(is_local_socket=True))).identity.id == LOCAL_SOCKET
    assert (await gate.admit(LIST, bearer("alice.a.b"))).identity.id == "alice"
    with pytest.raises(UnauthenticatedError):
        await gate.admit(LIST, bearer(f"{LOCAL_SOCKET}.a.b"))


async def test_public_services_need_no_caller(tokens: TokenFile) -> None:
    gate = Gate(tokens, public=["health"])
    for name, rule in TABLE.items():
        if rule.public == "health":
            assert (await gate.admit(name, Credentials())).identity.scopes == frozenset()
        else:
            with pytest.raises(UnauthenticatedError):
                await gate.admit(name, Credentials())


async def test_certificate_that_expired_since_the_handshake_is_refused(tokens: TokenFile) -> None:
    gate = Gate(tokens, clock=lambda: 1_000.0)
    names = ("URI:spiffe://x/mesh",)
    valid = Credentials(names=names, certificate_ends_s=1_001.0)
    assert (await gate.admit(GENERATE, valid)).identity.id == "mesh"
    for shown in (Credentials(names=names, certificate_ends_s=1_000.0), bearer("a-secret")):
        with pytest.raises(UnauthenticatedError):
            await gate.admit(GENERATE, replace(shown, certificate_ends_s=1_000.0))
    assert gate.failures.counts[Cause.EXPIRED] == 2


async def test_admission_ends_with_the_line_the_scope_the_token_and_the_certificate(
    tokens: TokenFile, tmp_path: Path
) -> None:
    now_s = 1_000.0
    gate = Gate(tokens, clock=lambda: now_s)
    admission = await gate.admit(GENERATE, bearer("a-secret"))
    of_anybody = await gate.admit(MODELS, bearer("a-secret"))
    by_certificate = await gate.admit(
        GENERATE, Credentials(names=("URI:spiffe://x/mesh",), certificate_ends_s=1_060.0)
    )
    assert admission.is_valid()
    assert by_certificate.is_valid()
    now_s = 1_060.0
    assert not by_certificate.is_valid()
    path = tmp_path / "callers"
    path.write_text(make_entry("alice", "a-secret", "read"))
    assert not admission.is_valid(), "the scope is gone"
    assert of_anybody.is_valid()
    path.write_text(make_entry("eve", "a-secret", "generate", "read"))
    assert not of_anybody.is_valid(), "the token is another caller's"
    path.write_text(make_entry("alice", "a-secret", "generate", expires="2020-01-01T00:00:00Z"))
    assert not admission.is_valid(), "the token has expired"
    path.write_text("")
    assert not admission.is_valid(), "the line is gone"


async def test_admission_by_a_jwt_ends_with_the_jwt() -> None:
    class Verifier:
        has_form = staticmethod(JwtVerifier.has_form)

        async def verify(self, token: str) -> Verified:
            return Verified(Identity("jane", frozenset(Scope)), 1_060.0)

    now_s = 1_000.0
    gate = Gate(jwts=cast("JwtVerifier", Verifier()), clock=lambda: now_s)
    admission = await gate.admit(GENERATE, bearer("a.b.c"))
    assert admission.is_valid()
    now_s = 1_060.0
    assert not admission.is_valid()


async def test_running_calls_of_a_revoked_token_end_and_no_others(
    tokens: TokenFile, tmp_path: Path
) -> None:
    gate = Gate(tokens)
    begun = asyncio.Semaphore(0)

    async def run(token: str) -> str:
        with gate.sessions.keep(await gate.admit(GENERATE, bearer(token))):
            begun.release()
            await asyncio.sleep(3_600)
        return ""

    path = tmp_path / "callers"
    path.write_text(make_entry("alice", "a", "generate") + make_entry("bob", "b", "generate"))
    of_alice, of_bob = (asyncio.create_task(run(token)) for token in ("a", "b"))
    for _ in range(2):
        await begun.acquire()
    gate.check_running()
    path.write_text(make_entry("bob", "b", "generate"))
    gate.check_running()
    with pytest.raises(UnauthenticatedError):
        await of_alice
    assert not of_bob.done()
    of_bob.cancel()
    with pytest.raises(asyncio.CancelledError):
        await of_bob
    assert gate.sessions.end_invalid() == 0, "nothing is kept of calls that have ended"


async def test_a_call_ends_with_any_scope_that_it_began_with(tmp_path: Path) -> None:
    path = tmp_path / "callers"
    path.write_text(make_entry("ann", "a", "read", "read:content", "read:all"))
    gate = Gate(TokenFile(path))
    admitted = await gate.admit("whence.v1.TraceService/WatchGenerations", bearer("a"))
    path.write_text(make_entry("ann", "a", "read", "read:content", "read:all", "generate"))
    assert admitted.is_valid()
    path.write_text(make_entry("ann", "a", "read", "read:all"))
    assert not admitted.is_valid()


async def test_running_calls_of_one_caller_are_limited(tokens: TokenFile) -> None:
    gate = Gate(tokens, public=["health"], max_calls=2)
    of_alice = await gate.admit(GENERATE, bearer("a-secret"))
    of_mesh = await gate.admit(GENERATE, Credentials(names=("URI:spiffe://x/mesh",)))
    of_nobody = await gate.admit("grpc.health.v1.Health/Watch", Credentials())
    keep = gate.sessions.keep
    with keep(of_alice), keep(of_mesh), keep(of_nobody), keep(of_nobody), keep(of_nobody):
        with keep(of_alice):
            with pytest.raises(CallerLimitError, match="2 running calls"), keep(of_alice):
                pass
        with keep(of_alice):
            pass
    assert not gate.sessions._num_of_caller, "nothing is kept of callers without calls"


def test_flood_of_refusals_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    failures = Failures(lambda: now_s)
    with caplog.at_level(logging.WARNING):
        for _ in range(1_000):
            failures.note(Cause.MISSING, GENERATE, "", "nothing")
        now_s = 60.0
        failures.note(Cause.MISSING, GENERATE, "", "nothing")
    assert failures.counts[Cause.MISSING] == 1_001
    assert len(caplog.messages) == 32
    assert caplog.messages[30] == "970 more calls were refused in a minute"


def test_names_of_a_certificate_are_read_alike_from_both_fronts() -> None:
    certificate = {
        "subject": ((("organizationName", "x"),), (("commonName", "svc"),)),
        "subjectAltName": (("DNS", "a.b"), ("URI", "spiffe://x"), ("email", "a@b"), ("other", "?")),
    }
    properties = {
        "x509_common_name": [b"svc"],
        "x509_pem_cert": [b"..."],
        "peer_dns": [b"a.b"],
        "peer_uri": [b"spiffe://x"],
        "peer_email": [b"a@b"],
    }
    names = {"DNS:a.b", "URI:spiffe://x", "EMAIL:a@b", "CN:svc"}
    assert set(list_certificate_names(certificate)) == names
    assert set(list_peer_names(properties.items())) == names
    assert list_certificate_names(None) == list_certificate_names({}) == ()
