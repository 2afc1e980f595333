"""Random requests over every RPC and HTTP route: nothing let in, no fault of the server's own.

The suite sends a few hundred; `make fuzz` sends FUZZ_REQUESTS, from the seed FUZZ_SEED on.
"""

import collections
import hashlib
import http.client
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from fuzzing import Fuzz, Http, Rpc, list_methods
from server_process import ServerProcess

from whence import Client
from whence_server.access.scope_table import ROUTES, RPCS, Rule
from whence_server.domain.api_routes import LOGIN, LOGOUT
from whence_server.domain.identity import Scope

CALLERS = {
    "everything": frozenset(Scope),
    "reader": frozenset({Scope.READ, Scope.READ_ALL}),
    "scraper": frozenset({Scope.METRICS}),
}
NUM_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "600"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
CALL_S, WATCH_S = 20.0, 0.5
MAX_MESSAGES = 5
"""Messages that are read of a stream before it is cancelled."""
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


def make_token(caller: str) -> str:
    return f"{caller}-secret"


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("fuzz")
    callers = folder / "callers"
    lines = [
        json.dumps(
            {
                "id": name,
                "sha256": hashlib.sha256(make_token(name).encode()).hexdigest(),
                "scopes": sorted(scopes),
            }
        )
        for name, scopes in CALLERS.items()
    ]
    callers.write_text("\n".join(lines))
    callers.chmod(0o600)
    flags = {
        "--listen": "127.0.0.1:0",
        "--http-listen": "127.0.0.1:0",
        "--auth-tokens": str(callers),
        "--model-name": "tiny",
    }
    flat = [part for pair in flags.items() for part in pair]
    with ServerProcess(tiny_model("gpt2"), folder / "data", *flat) as process:
        yield process


def call(channel: grpc.Channel, request: Rpc) -> grpc.StatusCode:
    """Send a call; return its status, OK for a stream that goes on."""
    metadata = (("authorization", request.header),) if request.header else ()
    timeout_s = WATCH_S if "Watch" in request.method else CALL_S
    stream = channel.stream_stream(f"/{request.method}")(
        iter(request.messages), timeout=timeout_s, metadata=metadata
    )
    try:
        for number, _ in enumerate(stream, 1):
            if number == MAX_MESSAGES:
                stream.cancel()
                return grpc.StatusCode.OK
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def find_fault_of_call(request: Rpc, code: grpc.StatusCode) -> str:
    rule = RPCS[request.method.replace("v1alpha", "v1")]
    if code in NEVER:
        return f"{request.method} ended with {code}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and "Watch" not in request.method:
        return f"{request.method} has not ended within {CALL_S} s"
    expected = find_refusal(rule, request.caller)
    if expected is not None and code is not expected:
        return f"{request.method} of {request.caller or 'a stranger'} ended with {code}"
    return ""


def find_refusal(rule: Rule, caller: str) -> grpc.StatusCode | None:
    """Return the status that a caller gets for any request; None if the request decides."""
    if rule.public == "health":
        return None
    if not caller:
        return grpc.StatusCode.UNAUTHENTICATED
    if rule.scopes and not CALLERS[caller].intersection(rule.scopes):
        return grpc.StatusCode.PERMISSION_DENIED
    return None


def ask(url: str, request: Http) -> int:
    """Send an HTTP request; return the status of its answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=CALL_S)
    try:
        connection.request(request.method, request.path, request.body, dict(request.headers))
        answer = connection.getresponse()
        # Events of what runs have no end.
        if answer.getheader("Content-Type", "").partition(";")[0] != "text/event-stream":
            answer.read(1_000)
        return answer.status
    finally:
        connection.close()


def find_fault_of_answer(request: Http, status: int) -> str:
    told = f"{request.method} {request.path} of {request.caller or 'a stranger'}: {status}"
    if status >= 500 and status not in {503, 504}:
        return told
    if request.route.startswith("GET /metrics") or request.route == "GET /healthz":
        return ""  # on a port of their own, which this server has not
    if request.route in {f"POST {LOGIN}", f"POST {LOGOUT}"}:
        return ""  # strangers come there with a token in the body
    refusal = find_refusal(ROUTES[request.route], request.caller)
    expected = {
        grpc.StatusCode.UNAUTHENTICATED: 401,
        grpc.StatusCode.PERMISSION_DENIED: 403,
    }.get(refusal, status)  # type: ignore[arg-type]  # None is no key
    return "" if status == expected else told


@pytest.mark.timeout(0)  # as many requests as are asked for; every call has a deadline
def test_random_requests_get_nothing_in_and_nothing_out_of_order(server: ServerProcess) -> None:
    target = server.target

    def generate() -> list[int]:
        with Client(target, token=make_token("everything")) as client:
            options = {"max_new_tokens": 8, "ignore_eos": True}
            return [token.token_id for token in client.generate("The quick", **options)]

    before = generate()
    with Client(target, token=make_token("everything")) as client:
        known = [it.generation_id for it in client.generations.list()]
    fuzz = Fuzz(SEED, {name: make_token(name) for name in CALLERS}, known)
    requests = [fuzz.make_request() for _ in range(NUM_REQUESTS)]
    with grpc.insecure_channel(target) as channel, ThreadPoolExecutor(8) as pool:

        def send(request: Rpc | Http) -> tuple[str, str]:
            if isinstance(request, Http):
                status = ask(server.http_url, request)
                return find_fault_of_answer(request, status), str(status)
            code = call(channel, request)
            return find_fault_of_call(request, code), code.name

        ends = list(pool.map(send, requests))
    counts = collections.Counter(end for _, end in ends)
    print(f"{NUM_REQUESTS} requests, seed {SEED}: {dict(counts.most_common())}")
    faults = [f"request {i}: {fault}" for i, (fault, _) in enumerate(ends) if fault]
    assert faults == [], f"FUZZ_SEED={SEED} FUZZ_REQUESTS={NUM_REQUESTS}"
    assert counts["OK"] > 0, "some requests are well-formed"
    assert counts["UNAUTHENTICATED"] > 0
    assert [line for line in server.log if "Traceback" in line or " ERROR " in line] == []
    assert server.process.poll() is None
    assert generate() == before


def test_every_method_and_route_is_asked() -> None:
    fuzz = Fuzz(SEED, {"it": "secret"}, [])
    requests = [fuzz.make_request() for _ in range(NUM_REQUESTS)]
    assert {it.method for it in requests if isinstance(it, Rpc)} == set(list_methods())
    assert {it.route for it in requests if isinstance(it, Http)} == set(ROUTES)
