"""The containers' health check, asked of a gRPC server by the command that the probes run."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from server_process import socket_target

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


@pytest.fixture
def served() -> Iterator[tuple[str, health.HealthServicer]]:
    with tempfile.TemporaryDirectory(prefix="whence-") as directory:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        target = f"unix:{directory}/socket"
        server.add_insecure_port(target)
        server.start()
        yield target, servicer
        server.stop(None).wait()


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("WHENCE_")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_server_that_serves_is_healthy(served: tuple[str, health.HealthServicer]) -> None:
    target, servicer = served
    servicer.set("", HealthCheckResponse.SERVING)
    done = check(target)
    assert (done.returncode, done.stdout) == (0, f"{target}: SERVING\n")
    assert check(WHENCE_TARGET=target).returncode == 0


def test_one_that_loads_or_drains_is_alive_alone(
    served: tuple[str, health.HealthServicer],
) -> None:
    target, servicer = served
    servicer.set("", HealthCheckResponse.NOT_SERVING)
    assert check(target).returncode == 1
    done = check("--live", target)
    assert (done.returncode, done.stdout) == (0, f"{target}: NOT_SERVING\n")


def test_one_that_speaks_tls_is_healthy(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "localhost")
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    servicer = health.HealthServicer()
    servicer.set("", HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    pair = (key.read_bytes(), certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    target = f"https://localhost:{port}"
    assert check(target, WHENCE_CA=str(authority.ca)).returncode == 0
    assert check(target, WHENCE_CA=str(tmp_path / "none")).returncode == 2
    assert check(f"localhost:{port}").returncode == 1
    server.stop(None).wait()


@pytest.mark.parametrize("flags", [(), ("--live",)])
def test_an_absent_server_is_neither_live_nor_serving(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    target = socket_target(tmp_path)
    done = check(*flags, target)
    assert done.returncode == 1
    assert f"{target}: UNAVAILABLE" in done.stderr


def test_no_proxy_comes_between(served: tuple[str, health.HealthServicer]) -> None:
    _, servicer = served
    servicer.set("", HealthCheckResponse.SERVING)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Nothing listens on port 9.
    done = check(
        f"127.0.0.1:{port}", http_proxy="http://127.0.0.1:9", no_proxy="", no_grpc_proxy=""
    )
    server.stop(None).wait()
    assert done.returncode == 0, done.stderr
