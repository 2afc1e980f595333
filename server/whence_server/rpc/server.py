"""The gRPC server itself: its sockets, its options, health and reflection."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from whence_server.domain.addresses import is_ip_address, is_loopback, parse_host_port
from whence_server.domain.errors import ConfigurationError
from whence_server.rpc.calls import CallLog, Endpoint, Method, service_handler
from whence_server.rpc.descriptors import MAX_CONNECTIONS
from whence_server.rpc.listening import listening_addresses
from whence_server.rpc.standard import Health, reflection_handler
from whence_server.rpc.unix_socket import UnixSocket

# Calls that wait for the event loop, and calls that it works on.
_MAX_PENDING_CALLS = 65_536
_MAX_CALLS = 16_384
# How long a new connection has to become one of HTTP/2: a client does so at once.
_HANDSHAKE_MS = 5_000
# A peer is asked whether it is there after so long without a word, and has so long to answer.
_PING_AFTER_MS, _PING_ANSWER_MS = 30_000, 20_000
# After so long without a call a connection is closed; a client opens another when it needs one.
_IDLE_MS = 300_000


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where and how the server listens.

    Attributes:
        listen: "HOST:PORT" (port 0 takes a free one) or "unix:PATH".
        insecure_listen_anywhere: allows addresses beyond loopback, without authentication.
        max_message_bytes: the largest request.
        max_concurrent_streams: calls at once on one connection.
        socket_mode: permissions of Unix sockets.
        max_connections: at once, over all addresses.
    """

    listen: tuple[str, ...]
    insecure_listen_anywhere: bool = False
    max_message_bytes: int = 4 << 20
    max_concurrent_streams: int = 1024
    socket_mode: int = 0o600
    max_connections: int = MAX_CONNECTIONS


@dataclass(slots=True)
class RpcServer:
    """A grpc.aio server with whence's services, health and reflection on it."""

    server: "grpc.aio.Server"
    health: Health
    services: tuple[str, ...]
    endpoints: list[Endpoint] = field(default_factory=list)
    sockets: list[UnixSocket] = field(default_factory=list)
    is_serving: bool = False
    """What health's callers were last told."""

    @property
    def targets(self) -> list[str]:
        """What a client connects to, with the real port numbers."""
        return [
            f"unix:{e.address}" if e.port is None else f"{_bracketed(e.address)}:{e.port}"
            for e in self.endpoints
        ]

    async def stop(self, grace_s: float) -> None:
        """Remove the Unix sockets, and end the calls that run on after the grace."""
        # While they are open, no other file can have their inode numbers.
        self.remove_sockets()
        await self.server.stop(grace_s)

    def remove_sockets(self) -> None:
        """Remove the Unix sockets that are still this server's."""
        while self.sockets:
            self.sockets.pop().remove()

    async def set_serving(self, serving: bool) -> None:
        """Tell health's callers, for the server as a whole and for each service."""
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
    """Make the server and binds its sockets; nothing is served before `start`.

    Raises:
        ConfigurationError: an address that is malformed, taken, or not loopback.
    """
    server = grpc.aio.server(
        options=_channel_arguments(options), maximum_concurrent_rpcs=_MAX_CALLS
    )
    for service, methods in services.items():
        server.add_generic_rpc_handlers((service_handler(service, methods, calls),))
    health = Health()
    server.add_generic_rpc_handlers((health.handler(), reflection_handler(tuple(services))))
    rpc_server = RpcServer(server, health, tuple(services))
    # The servicer starts out as SERVING.
    await rpc_server.set_serving(False)
    try:
        for address in options.listen:
            rpc_server.endpoints.append(_bind(rpc_server, address, options))
    except BaseException:
        rpc_server.remove_sockets()
        raise
    calls.endpoints.extend(rpc_server.endpoints)
    return rpc_server


def _channel_arguments(options: ServerOptions) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        # Refuses streams by chance while more are being put away than may be open: honest clients
        # with many calls got UNAVAILABLE (RST_STREAM, error code 7).
        ("grpc.http.overload_protection", 0),
        # From 1,000 waiting calls on gRPC would cancel some by chance, without a reason.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        # gRPC bounds each port by itself. A host's name may be an address of both families.
        ("grpc.max_allowed_incoming_connections", _connections_a_port(options)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        # Flow-control windows stay small, so that a reader that stalls is felt soon.
        ("grpc.http2.bdp_probe", 0),
        # A client with keepalive pings through a long prefill, when no data flows: by default
        # the server would answer a few pings within five minutes with GOAWAY. Clients ping
        # every 10 s at the most, but not to the millisecond: at 10 s they would be too many.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _PING_AFTER_MS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
        ("grpc.http2.ping_timeout_ms", _PING_ANSWER_MS),
        # Two servers on one port would split the callers between them.
        ("grpc.so_reuseport", 0),
    )


def _connections_a_port(options: ServerOptions) -> int:
    num_ports = 0
    for address in options.listen:
        endpoint = parse_address(address)
        num_ports += 1 if endpoint.port is None or is_ip_address(endpoint.address) else 2
    return max(options.max_connections // max(num_ports, 1), 1)


def _bind(rpc_server: RpcServer, address: str, options: ServerOptions) -> Endpoint:
    endpoint = parse_address(address)

    def listen(target: str) -> int:
        try:
            return rpc_server.server.add_insecure_port(target)
        except RuntimeError as error:
            raise ConfigurationError(f"--listen {address}: cannot listen there: {error}") from error

    if endpoint.port is None:
        unix_socket = UnixSocket(endpoint.address, options.socket_mode)
        rpc_server.sockets.append(unix_socket)
        unix_socket.bind(lambda path: listen(f"unix:{path}"))
        return endpoint
    if not options.insecure_listen_anywhere and not is_loopback(endpoint.address):
        raise ConfigurationError(
            f"--listen {address}: only loopback addresses and Unix sockets are allowed, as "
            "callers are not authenticated; --insecure-listen-anywhere lifts this"
        )
    port = endpoint.port
    for host in listening_addresses(endpoint.address):
        port = listen(f"{_bracketed(host)}:{port}")
    return Endpoint(endpoint.address, port)


def parse_address(address: str) -> Endpoint:
    """Read "HOST:PORT", "[IPV6]:PORT" or "unix:PATH".

    Raises:
        ConfigurationError: it is none of these.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if path and "\0" not in path:
            return Endpoint(path, None)
    elif address.startswith("unix-abstract:"):
        raise ConfigurationError(
            f"--listen {address!r}: abstract sockets have no permissions, so that every process of "
            "the machine could connect; use unix:PATH"
        )
    else:
        with suppress(ValueError):
            return Endpoint(*parse_host_port(address))
    raise ConfigurationError(f"--listen {address!r}: expected HOST:PORT, [IPV6]:PORT or unix:PATH")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
