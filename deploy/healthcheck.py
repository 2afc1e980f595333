#!/usr/bin/env python3
"""Asks a whence server how it is, over gRPC's standard health service: for containers' probes.

    healthcheck.py [--live] [TARGET]

TARGET is HOST:PORT, https://HOST:PORT for TLS, or unix:PATH; left out, $WHENCE_TARGET, or
127.0.0.1:50051. $WHENCE_CA, $WHENCE_CERT and $WHENCE_KEY apply as to every client. The server is
healthy once it serves: its model is loaded, and it is not draining. With --live it is enough
that it answers: a server that loads its model or starts its engine again is not to be killed.

Exit status: 0 healthy, 1 not, 2 a wrong argument.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from whence.security import choose_server

# Below the probes' own limits, so that what went wrong is still said.
TIMEOUT_S = 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="Asks a whence server how it is.")
    parser.add_argument("--live", action="store_true", help="any answer will do")
    parser.add_argument(
        "target", nargs="?", default=os.environ.get("WHENCE_TARGET") or "127.0.0.1:50051"
    )
    parsed = parser.parse_args(arguments)
    try:
        status = ask(parsed.target)
    except ValueError as error:
        print(f"{parsed.target}: {error}", file=sys.stderr)
        return 2
    except grpc.RpcError as error:
        print(f"{parsed.target}: {error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    print(f"{parsed.target}: {status}")
    return 0 if parsed.live or status == "SERVING" else 1


def ask(target: str) -> str:
    """Return the health that the server reports for itself as a whole.

    Raises:
        grpc.RpcError: it gave none within `TIMEOUT_S`.
        ValueError: the target is not an address, or a file of TLS is unusable.
    """
    server = choose_server(target)
    # A proxy from the environment has no business between a probe and its own container.
    options = [("grpc.enable_http_proxy", 0)]
    with (
        grpc.insecure_channel(server.address, options)
        if server.credentials is None
        else grpc.secure_channel(server.address, server.credentials, options)
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


if __name__ == "__main__":
    sys.exit(main())
