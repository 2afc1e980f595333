"""The gRPC server itself: its sockets, its options, health and reflection."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from whence_server.domain.errors import ConfigurationError
from whence_server.rpc.calls import CallLog, Endpoint, Method, service_handler


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how the server listens.

    Attributes:
        listen: "HOST:PORT" (port 0 takes a free one) or "unix:PATH".
        insecure_listen_anywhere: allows addresses beyond loopback, without authentication.
        max_message_bytes: the largest request.
        max_concurrent_streams: calls at once on one connection.
    """

    listen: tuple[str, ...]
    insecure_listen_anywhere: bool = False
    max_message_bytes: int = 4 << 20
    max_concurrent_streams: int = 1024


@dataclass(slots=True)
class RpcServer:
    """A grpc.aio server with whence's services, health and reflection on it."""

    server: "grpc.aio.Server"
    health: HealthServicer
    services: tuple[str, ...]
    endpoints: list[Endpoint] = field(default_factory=list)
    is_serving: bool = False
    """What health's callers were last told."""

    @property
    def targets(self) -> list[str]:
        """What a client connects to, with the real port numbers."""
        return [
            f"unix:{e.address}" if e.port is None else f"{_bracketed(e.address)}:{e.port}"
            for e in self.endpoints
        ]

    async def set_serving(self, serving: bool) -> None:
        """Tells health's callers, for the server as a whole and for each service."""
        state = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        self.is_serving = serving
        for service in ("", *self.services):
            await self.health.set(service, state)


async def build_server(
    options: ServerOptions,
    services: dict[str, list[Method[Any]]],
    calls: CallLog,
) -> RpcServer:
    """Makes the server and binds its sockets; nothing is served before `start`.

    Raises:
        ConfigurationError: an address that is malformed, taken, or not loopback.
    """
    server = grpc.aio.server(options=_channel_arguments(options))
    for service, methods in services.items():
        server.add_generic_rpc_handlers((service_handler(service, methods, calls),))
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    rpc_server = RpcServer(server, health, tuple(services))
    # The servicer starts out as SERVING.
    await rpc_server.set_serving(False)
    for address in options.listen:
        rpc_server.endpoints.append(_bind(server, address, options))
    calls.endpoints.extend(rpc_server.endpoints)
    return rpc_server


def _channel_arguments(options: ServerOptions) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        # Flow-control windows stay small, so that a reader that stalls is felt soon.
        ("grpc.http2.bdp_probe", 0),
        # A client with keepalive pings through a long prefill, when no data flows: by default
        # the server would answer a few pings within five minutes with GOAWAY. Clients ping
        # every 10 s at the most, but not to the millisecond: at 10 s they would be too many.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Two servers on one port would split the callers between them.
        ("grpc.so_reuseport", 0),
    )


def _bind(server: "grpc.aio.Server", address: str, options: ServerOptions) -> Endpoint:
    endpoint = parse_address(address)
    if endpoint.port is None:
        target = f"unix:{endpoint.address}"
    else:
        if not options.insecure_listen_anywhere and not _is_loopback(endpoint.address):
            raise ConfigurationError(
                f"--listen {address}: only loopback addresses and Unix sockets are allowed, as "
                "callers are not authenticated; --insecure-listen-anywhere lifts this"
            )
        target = f"{_bracketed(endpoint.address)}:{endpoint.port}"
    try:
        port = server.add_insecure_port(target)
    except RuntimeError as error:
        raise ConfigurationError(f"--listen {address}: cannot listen there: {error}") from error
    return endpoint if endpoint.port is None else Endpoint(endpoint.address, port)


def parse_address(address: str) -> Endpoint:
    """Reads "HOST:PORT", "[IPV6]:PORT" or "unix:PATH".

    Raises:
        ConfigurationError: it is none of these.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if path:
            return Endpoint(path, None)
    else:
        host, colon, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if colon and host and port.isascii() and port.isdecimal() and int(port) < 65_536:
            return Endpoint(host, int(port))
    raise ConfigurationError(f"--listen {address!r}: expected HOST:PORT, [IPV6]:PORT or unix:PATH")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
