"""Cost of TLS, tokens, JWTs and the audit: throughput and first token against a plain server."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from processes import Answering, answering, server
from throughput import alternate, speed
from workloads import WORKLOADS, Workload, find_directory

from whence_server.access.new_token import append_line, make_token
from whence_server.domain.identity import Scope

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from certificates import Authority

PAIRS_OF_FIRST_TOKENS = 40
FORMS = ("plain", "TLS", "TLS and a token", "TLS and a JWT")


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print("| workload | compared with a plain server | with it | plain | ratio |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in names:
        workload = WORKLOADS[name]
        with _open_loads(workload) as loads:
            plain = loads[FORMS[0]]
            for form in FORMS[1:]:
                guarded = loads[form]
                for num_streams in (1, 16):
                    row = alternate(
                        runs,
                        lambda n=num_streams, load=guarded: speed(load, num_streams=n),
                        lambda n=num_streams, load=plain: speed(load, num_streams=n),
                    )
                    told = f"{form}, {num_streams} streams, tokens/s"
                    print(f"| {workload} | {told} | {row[0]:,.0f} | {row[1]:,.0f} | {row[2]:.3f} |")
                _print_first_tokens(workload, form, guarded, plain)


def _print_first_tokens(
    workload: Workload, form: str, guarded: Answering, plain: Answering
) -> None:
    """Print the delays of one stream's first token, over a connection that stands."""
    pairs = [
        [load.ask(num_streams=1, num_new_tokens=2)["first_s"][0] * 1e3 for load in (guarded, plain)]
        for _ in range(PAIRS_OF_FIRST_TOKENS)
    ]
    ours, theirs = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(a / b for a, b in pairs)
    print(
        f"| {workload} | {form}, first token, ms | {ours:.2f} | {theirs:.2f} | {ratio:.3f} |",
        flush=True,
    )


@contextmanager
def _open_loads(workload: Workload) -> Iterator[Mapping[str, Answering]]:
    """Run three servers, and a load for each form; yield the loads."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whence-bench-")))
        authority = Authority(folder / "ca")
        certificate, key = authority.issue("server", "localhost", "127.0.0.1")
        tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
        token, jwt_token, callers = _make_callers(folder)
        flags = {"plain": (), "TLS": tls, "guarded": (*tls, *callers)}
        targets = {
            form: stack.enter_context(server(find_directory(workload), *workload.flags, *more))[
                1
            ].removeprefix("grpcs://")
            for form, more in flags.items()
        }
        trusted = {"BENCH_CA": str(authority.ca)}
        loads = (
            (targets["plain"], {}),
            (targets["TLS"], trusted),
            (targets["guarded"], trusted | {"BENCH_TOKEN": token}),
            (targets["guarded"], trusted | {"BENCH_TOKEN": jwt_token}),
        )
        yield {
            form: stack.enter_context(
                answering("load.py", target, str(workload.vocabulary_size), environment=environment)
            )
            for form, (target, environment) in zip(FORMS, loads, strict=True)
        }


def _make_callers(folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return a token, a JWT, and the flags of a server that accepts both and audits all."""
    new = make_token("bench", [Scope.GENERATE], None)
    append_line(folder / "callers", new.line)
    private = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(ECAlgorithm.to_jwk(private.public_key())) | {"kid": "1"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
    claims = {
        "iss": "https://idp",
        "aud": "whence",
        "sub": "bench",
        "scope": "generate",
        "exp": time.time() + 24 * 3_600,
    }
    signed = jwt.encode(claims, private, "ES256", headers={"kid": "1"})
    flags = (
        *("--auth-tokens", str(folder / "callers"), "--auth-jwks", str(folder / "jwks.json")),
        *("--auth-jwt-issuer", "https://idp", "--auth-jwt-audience", "whence"),
    )
    return new.token, signed, flags
