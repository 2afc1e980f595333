"""JWTs: accepted from the provider for this server, and refused in every other case."""

import asyncio
import base64
import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from whence_server.access import jwks
from whence_server.access.failures import Cause, RefusedError
from whence_server.access.jwks import FRESH_S, PAUSE_S, KeySet, parse_keys
from whence_server.access.jwt_tokens import JwtRules, JwtVerifier
from whence_server.domain.errors import ConfigurationError, ProviderAwayError
from whence_server.domain.identity import Scope

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
RULES = JwtRules("https://issuer.example", "whence")


def make_jwk(key: Any, algorithm: Any, key_id: str, **fields: object) -> dict[str, Any]:
    return json.loads(algorithm.to_jwk(key.public_key())) | {"kid": key_id} | fields


JWKS = {
    "keys": [
        make_jwk(RSA_KEY, RSAAlgorithm, "rsa"),
        make_jwk(EC_KEY, ECAlgorithm, "ec"),
        make_jwk(ED_KEY, OKPAlgorithm, "ed"),
        {"kty": "oct", "k": base64.urlsafe_b64encode(b"k" * 32).decode(), "kid": "oct"},
    ]
}


def make_claims(**changes: object) -> dict[str, object]:
    claims = {
        "iss": "https://issuer.example",
        "aud": ["other", "whence"],
        "sub": "alice",
        "scope": "openid generate read:content",
        "exp": time.time() + 60,
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def sign(key: Any = RSA_KEY, algorithm: str = "RS256", key_id: str = "rsa", **claims: Any) -> str:
    return jwt.encode(make_claims(**claims), key, algorithm, headers={"kid": key_id})


def forge(header: dict[str, object], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(make_claims()).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


async def make_verifier(tmp_path: Path, rules: JwtRules = RULES) -> JwtVerifier:
    (tmp_path / "jwks").write_text(json.dumps(JWKS))
    keys = KeySet(str(tmp_path / "jwks"))
    await keys.start()
    return JwtVerifier(keys, rules)


@pytest.mark.parametrize(
    ("key", "algorithm", "key_id"),
    [(RSA_KEY, "RS256", "rsa"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed")],
)
async def test_token_of_the_provider_names_the_caller_and_its_scopes(
    tmp_path: Path, key: Any, algorithm: str, key_id: str
) -> None:
    verifier = await make_verifier(tmp_path)
    identity = (await verifier.verify(sign(key, algorithm, key_id))).identity
    assert identity.id == "alice"
    assert identity.scopes == {Scope.GENERATE, Scope.READ_CONTENT}, "other words are passed over"


async def test_groups_are_mapped_to_scopes(tmp_path: Path) -> None:
    scopes = {"staff": frozenset({Scope.READ, Scope.GENERATE}), "ops": frozenset({Scope.METRICS})}
    rules = JwtRules(RULES.issuer, RULES.audience, "client", "groups", scopes)
    verifier = await make_verifier(tmp_path, rules)
    token = sign(client="svc", groups=["staff", "ops", "generate", 7])
    identity = (await verifier.verify(token)).identity
    assert (identity.id, identity.scopes) == ("svc", {Scope.READ, Scope.GENERATE, Scope.METRICS})
    for groups in (None, "staffs", {"staff": 1}, ["admin"]):
        assert (
            await verifier.verify(sign(client="svc", groups=groups))
        ).identity.scopes == frozenset()


REFUSED: dict[str, tuple[Callable[[], str], Cause]] = {
    "alg none": (lambda: forge({"alg": "none", "kid": "rsa"}), Cause.INVALID),
    "alg None": (lambda: forge({"alg": "None", "kid": "rsa"}), Cause.INVALID),
    "no alg": (lambda: forge({"kid": "rsa"}), Cause.INVALID),
    # PyJWT refuses to make it: the public key is the secret of an HMAC.
    "HS256 with the public key": (
        lambda: sign_with_hmac(PUBLIC_PEM, "rsa"),
        Cause.INVALID,
    ),
    "HS256 with a key of the set": (lambda: sign_with_hmac(b"k" * 32, "oct"), Cause.INVALID),
    "unknown kid": (lambda: sign(key_id="new"), Cause.UNKNOWN),
    "no kid": (lambda: jwt.encode(make_claims(), RSA_KEY, "RS256"), Cause.UNKNOWN),
    "secret key's kid": (lambda: sign(key_id="oct"), Cause.UNKNOWN),
    "another key": (lambda: sign(OTHER_RSA_KEY), Cause.INVALID),
    "key of another kind": (lambda: sign(EC_KEY, "ES256", "rsa"), Cause.INVALID),
    "another hash than the key's": (lambda: sign(algorithm="RS512"), Cause.INVALID),
    "expired": (lambda: sign(exp=time.time() - 60), Cause.EXPIRED),
    "never expires": (lambda: sign(exp=None), Cause.INVALID),
    "not valid yet": (lambda: sign(nbf=time.time() + 600), Cause.INVALID),
    "another issuer": (lambda: sign(iss="https://issuer.example.evil"), Cause.INVALID),
    "no issuer": (lambda: sign(iss=None), Cause.INVALID),
    "another audience": (lambda: sign(aud="whence2"), Cause.INVALID),
    "no audience": (lambda: sign(aud=None), Cause.INVALID),
    "no subject": (lambda: sign(sub=None), Cause.INVALID),
    "subject is a number": (lambda: sign(sub=7), Cause.INVALID),
    "no JSON": (lambda: "a.b.c", Cause.INVALID),
    "no UTF-8": (lambda: sign() + "\udc80", Cause.INVALID),
    "alg is a list": (lambda: forge({"alg": [], "kid": "rsa"}), Cause.INVALID),
    "alg is an object": (lambda: forge({"alg": {}, "kid": "rsa"}), Cause.INVALID),
    "header of a thousand levels": (lambda: nest_header(2_000), Cause.INVALID),
    "expires at infinity": (lambda: sign(exp=float("inf")), Cause.INVALID),
    "subject with a lone surrogate": (lambda: sign(sub="a\ud800"), Cause.INVALID),
    "subject with a control character": (lambda: sign(sub="alice\n"), Cause.INVALID),
    "changed": (lambda: sign()[:-6] + "AAAAAA", Cause.INVALID),
    "too long": (lambda: sign(note="x" * 20_000), Cause.INVALID),
    "embedded key": (
        lambda: jwt.encode(
            make_claims(),
            OTHER_RSA_KEY,
            "RS256",
            headers={"kid": "rsa", "jwk": make_jwk(OTHER_RSA_KEY, RSAAlgorithm, "rsa")},
        ),
        Cause.INVALID,
    ),
}


def nest_header(depth: int) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":' + b"[" * depth).decode().rstrip("=")
    return f"{header}.e30.eA"


def sign_with_hmac(secret: bytes, key_id: str) -> str:
    import hashlib
    import hmac

    token = forge({"alg": "HS256", "kid": key_id}).rpartition(".")[0]
    signature = hmac.new(secret, token.encode(), hashlib.sha256).digest()
    return f"{token}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


@pytest.mark.parametrize("case", REFUSED)
async def test_forged_and_foreign_tokens_are_refused(tmp_path: Path, case: str) -> None:
    make, cause = REFUSED[case]
    verifier = await make_verifier(tmp_path)
    token = make()
    with pytest.raises(RefusedError) as caught:
        await verifier.verify(token)
    assert caught.value.cause is cause
    assert token not in caught.value.detail


async def test_file_of_keys_is_read_again(tmp_path: Path) -> None:
    verifier = await make_verifier(tmp_path)
    await verifier.verify(sign())
    rotated = {"keys": [make_jwk(OTHER_RSA_KEY, RSAAlgorithm, "new")]}
    (tmp_path / "next").write_text(json.dumps(rotated))
    (tmp_path / "next").rename(tmp_path / "jwks")
    assert (await verifier.verify(sign(OTHER_RSA_KEY, key_id="new"))).identity.id == "alice"
    with pytest.raises(RefusedError):
        await verifier.verify(sign())


async def test_revoked_key_is_not_kept_when_the_file_cannot_be_read_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    path = tmp_path / "jwks"
    path.write_text(json.dumps(JWKS))
    keys = KeySet(str(path), clock=lambda: now_s)
    await keys.start()
    path.write_text(json.dumps({"keys": [make_jwk(EC_KEY, ECAlgorithm, "ec")]}))

    def fail(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert await keys.find("rsa") is not None
    now_s += PAUSE_S + 1
    assert await keys.find("rsa") is None


class Provider:
    """Identity provider whose keys are fetched; `now_s` is the server's clock."""

    def __init__(self) -> None:
        self.num_fetches = 0
        self.now_s = 1_000.0
        self.keys = [make_jwk(RSA_KEY, RSAAlgorithm, "rsa")]
        self.error: OSError | None = None

    async def fetch(self, _url: str) -> bytes:
        self.num_fetches += 1
        if self.error is not None:
            raise self.error
        return json.dumps({"keys": self.keys}).encode()

    def make_keys(self) -> KeySet:
        return KeySet("https://issuer.example/jwks", self.fetch, lambda: self.now_s)


async def test_unknown_key_is_fetched_at_most_once_in_a_while() -> None:
    provider = Provider()
    keys = provider.make_keys()
    await keys.start()
    verifier = JwtVerifier(keys, RULES)
    provider.keys.append(make_jwk(EC_KEY, ECAlgorithm, "ec"))
    for _ in range(20):
        with pytest.raises(RefusedError):
            await verifier.verify(sign(EC_KEY, "ES256", "ec"))
    assert provider.num_fetches == 1, "strangers cause no fetches"
    provider.now_s += PAUSE_S + 1
    for _ in range(20):
        assert (await verifier.verify(sign(EC_KEY, "ES256", "ec"))).identity.id == "alice"
        with pytest.raises(RefusedError):
            await verifier.verify(sign(key_id="unheard-of"))
    assert provider.num_fetches == 2
    await keys.close()


async def test_keys_stay_valid_while_the_provider_is_down() -> None:
    provider = Provider()
    keys = provider.make_keys()
    await keys.start()
    verifier = JwtVerifier(keys, RULES)
    provider.error = OSError("down")
    provider.now_s += FRESH_S + 1
    for _ in range(3):
        assert (await verifier.verify(sign())).identity.id == "alice"
    assert keys._refreshing is not None
    await keys._refreshing
    assert provider.num_fetches == 2
    assert (await verifier.verify(sign())).identity.id == "alice"
    provider.error, provider.keys = None, [make_jwk(EC_KEY, ECAlgorithm, "ec")]
    provider.now_s += FRESH_S + 1
    await verifier.verify(sign())
    await keys._refreshing
    with pytest.raises(RefusedError):
        await verifier.verify(sign())
    await keys.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://alice:hunter2@issuer.example/jwks",
        "http://hunter2@issuer.example/jwks",
        "https://:hunter2@issuer.example/jwks",
        "https://alice:hunter2@[::1/jwks",
    ],
)
def test_url_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--auth-jwks: expected a") as caught:
        KeySet(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("mode", [0o664, 0o646])
async def test_file_of_keys_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "jwks"
    path.write_text(json.dumps(JWKS))
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"--auth-jwks .*\(mode {mode:03o}\).*chmod go-w"):
        await KeySet(str(path)).start()


async def test_source_of_keys_must_be_usable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a file or an https:// URL"):
        KeySet("http://issuer.example/jwks")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await KeySet(str(tmp_path / "none")).start()
    for content in (b"", b"{}", b'{"keys": []}', json.dumps({"keys": JWKS["keys"][3:]}).encode()):
        with pytest.raises(ValueError, match="holds no"):
            parse_keys(content)
    key_with_a_list = json.dumps({"keys": [{**JWKS["keys"][0], "kid": ["rsa"]}]}).encode()
    deep = b"[" * 200_000
    for content in (b"[]", b"null", b'"maintenance"', b"5", b'{"keys": 5}', deep, key_with_a_list):
        with pytest.raises(ValueError, match="holds no"):
            parse_keys(content)
    empty = Provider()
    empty.keys = []
    with pytest.raises(ConfigurationError, match="holds no"):
        await empty.make_keys().start()


async def test_provider_that_is_away_at_the_start_is_asked_until_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            provider.error = None
        if len(pauses) == 9:
            provider.keys = [make_jwk(RSA_KEY, RSAAlgorithm, "rsa")]

    monkeypatch.setattr(jwks, "_sleep", pause)
    provider = Provider()
    provider.error, provider.keys = OSError("HTTP status 503"), []
    keys = provider.make_keys()
    verifier = JwtVerifier(keys, RULES)
    parts: list[bool] = []
    ready = asyncio.Event()

    async def on_ready(is_ready: bool) -> None:
        parts.append(is_ready)
        if is_ready:
            ready.set()

    await keys.start()
    await keys.report(on_ready)
    with pytest.raises(ProviderAwayError):
        await verifier.verify(sign())
    with pytest.raises(RefusedError):
        await verifier.verify(forge({"alg": "none", "kid": "rsa"}))
    await asyncio.wait_for(ready.wait(), 60)
    assert (await verifier.verify(sign())).identity.id == "alice"
    assert (parts, pauses) == ([False, True], [1, 2, 4, 8, 16, 30, 30, 30, 30])
    assert provider.num_fetches == 10
    said = [record.getMessage() for record in caplog.records]
    assert "(HTTP status 503); until it can" in said[0]
    assert "holds no JWK set" in said[8]
    assert "the keys are there" in said[-1]
    await keys.close()


async def test_no_answer_of_a_provider_ends_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    jwks_of_provider = json.dumps({"keys": [make_jwk(RSA_KEY, RSAAlgorithm, "rsa")]}).encode()
    answers = [OSError("refused"), b"[]", RuntimeError("a bug"), jwks_of_provider]

    async def fetch(_url: str) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(jwks, "_sleep", lambda _seconds: asyncio.sleep(0))
    keys = KeySet("https://issuer.example/jwks", fetch)
    await keys.start()
    assert keys._refreshing is not None
    await asyncio.wait_for(keys._refreshing, 60)
    assert answers == []
    assert await keys.find("rsa") is not None


async def test_keys_that_come_while_their_absence_is_told_make_the_server_ready() -> None:
    provider = Provider()
    keys = provider.make_keys()
    parts: list[bool] = []

    async def on_ready(is_ready: bool) -> None:
        if not parts:
            await keys.start()
        parts.append(is_ready)

    await keys.report(on_ready)
    assert parts == [False, True]


async def test_server_that_ends_stops_asking_the_provider() -> None:
    provider = Provider()
    provider.error = OSError("Connection refused")
    keys = provider.make_keys()
    await keys.start()
    await keys.close()
    assert keys._refreshing is not None
    assert keys._refreshing.cancelled()
