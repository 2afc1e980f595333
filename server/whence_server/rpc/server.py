"""The gRPC server: its sockets, options, health and reflection."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.access.tls_files import TlsFiles
from whence_server.domain.addresses import (
    NEEDS_GUARD,
    is_ip_address,
    is_loopback,
    parse_host_port,
)
from whence_server.domain.errors import ConfigurationError
from whence_server.rpc.address_bound import AddressBound
from whence_server.rpc.calls import (
    MAX_MESSAGE_BYTES,
    CallLog,
    Endpoint,
    Method,
    make_service_handler,
)
from whence_server.rpc.descriptors import MAX_CONNECTIONS
from whence_server.rpc.listening import (
    choose_port,
    find_duplicate,
    find_obstacle,
    resolve_addresses,
)
from whence_server.rpc.standard import Health, make_reflection_handlers
from whence_server.rpc.tls import make_server_credentials
from whence_server.rpc.unix_socket import UnixSocket
from whence_server.rpc.unknown_methods import UnknownMethods

# Maximum numbers of calls that wait for the event loop, and of running calls.
_MAX_PENDING_CALLS = 65_536
_MAX_CALLS = 16_384
# Maximum size of a call's headers: a mesh adds its own, and baggage alone may have 8 KiB.
_MAX_METADATA_BYTES = 64 << 10
# Time for the HTTP/2 handshake of a new connection.
_HANDSHAKE_MS = 5_000
# Silence after which a peer is pinged, and time for its answer: a reader that is silently gone is
# noticed after their sum.
_PING_AFTER_MS, _PING_ANSWER_MS = 15_000, 10_000
# Time without calls after which a connection is closed; clients reconnect when needed.
_IDLE_MS = 300_000
# gRPC refuses larger requests than this by itself, without details; the servicers refuse what lies
# between with theirs.
_REFUSED_WITH_DETAILS = 4
_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Addresses and limits of the server.

    Attributes:
        listen: "HOST:PORT" (port 0 chooses a free one) or "unix:PATH".
        insecure_listen_anywhere: allow addresses beyond loopback without TLS and authentication.
        is_guarded: callers are authenticated, and TCP ports speak TLS.
        max_message_bytes: maximum size of a request.
        max_concurrent_streams: maximum number of concurrent calls on one connection.
        socket_mode: permissions of Unix sockets.
        max_connections: maximum number of open connections over all addresses.
        progress_interval_s: seconds of silence after which a stream tells its progress; 0 for
            never.
        tls: files of TLS, which all TCP ports then speak; None for plain text.
        metrics_listen: "HOST:PORT" of the metrics page, on which this process listens already;
            "" for none.
    """

    listen: tuple[str, ...]
    insecure_listen_anywhere: bool = False
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_concurrent_streams: int = 1024
    socket_mode: int = 0o600
    max_connections: int = MAX_CONNECTIONS
    progress_interval_s: float = 10.0
    is_guarded: bool = False
    metrics_listen: str = ""
    tls: TlsFiles | None = None


@dataclass(slots=True)
class RpcServer:
    """A grpc.aio server with whence's services, health and reflection."""

    server: "grpc.aio.Server"
    health: Health
    services: tuple[str, ...]
    endpoints: list[Endpoint] = field(default_factory=list)
    sockets: list[UnixSocket] = field(default_factory=list)
    is_encrypted: bool = False
    """True if its TCP ports speak TLS."""
    is_serving: bool = False
    """True if health reports SERVING."""
    address_bound: AddressBound | None = None
    """Bound on the connections of each address; None without a limit."""

    @property
    def targets(self) -> list[str]:
        """Addresses for clients, with the actual port numbers."""
        scheme = "grpcs://" if self.is_encrypted else ""
        return [
            f"unix:{e.address}"
            if e.port is None
            else f"{scheme}{_add_brackets(e.address)}:{e.port}"
            for e in self.endpoints
        ]

    def watch_addresses(self, max_per_address: int) -> None:
        """Close connections of an address that has too many, from now on; 0 is no limit."""
        ports = {endpoint.port for endpoint in self.endpoints if endpoint.port is not None}
        if ports and max_per_address:
            self.address_bound = AddressBound(ports, max_per_address)
            self.address_bound.start()

    async def stop(self, grace_s: float) -> None:
        """Remove the Unix sockets, and end the calls that still run after the grace."""
        if self.address_bound is not None:
            await self.address_bound.close()
        # While the sockets are open, no other file can have their inode numbers.
        self.remove_sockets()
        await self.server.stop(grace_s)

    def remove_sockets(self) -> None:
        """Remove the Unix sockets that still belong to this server."""
        while self.sockets:
            self.sockets.pop().remove()

    async def set_serving(self, serving: bool) -> None:
        """Set the health of the server as a whole and of each service."""
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
    gate: Gate = OPEN_GATE,
) -> RpcServer:
    """Build the server and bind its sockets; it serves nothing before `start`.

    Args:
        options: addresses and limits.
        services: methods by the full names of their services.
        calls: recording of calls.
        gate: admits callers.

    Raises:
        ConfigurationError: an address is malformed, in use, or not loopback.
    """
    server = grpc.aio.server(
        options=_make_channel_arguments(options), maximum_concurrent_rpcs=_MAX_CALLS
    )
    for service, methods in services.items():
        handler = make_service_handler(
            service,
            methods,
            calls,
            options.max_message_bytes,
            options.progress_interval_s,
            gate=gate,
        )
        server.add_generic_rpc_handlers((handler,))
    health = Health(gate)
    server.add_generic_rpc_handlers(
        (
            health.make_handler(),
            *make_reflection_handlers(tuple(services), gate),
            UnknownMethods(),
        )
    )
    rpc_server = RpcServer(server, health, tuple(services), is_encrypted=options.tls is not None)
    # The health servicer starts as SERVING.
    await rpc_server.set_serving(False)
    try:
        for address in options.listen:
            rpc_server.endpoints.append(_bind(rpc_server, address, options))
    except BaseException:
        rpc_server.remove_sockets()
        raise
    calls.endpoints.extend(rpc_server.endpoints)
    return rpc_server


def _make_channel_arguments(options: ServerOptions) -> Sequence[tuple[str, int]]:
    return (
        (
            "grpc.max_receive_message_length",
            min(_REFUSED_WITH_DETAILS * options.max_message_bytes, _MAX_INT32),
        ),
        # Between two different limits gRPC refuses headers at random.
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        # Overload protection refuses streams at random while more are closing than may be open:
        # well-behaved clients with many calls got UNAVAILABLE (RST_STREAM, error code 7).
        ("grpc.http.overload_protection", 0),
        # By default gRPC cancels calls at random from 1,000 waiting ones on, without a reason.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        # gRPC bounds each port separately. A host name may have addresses of both families.
        ("grpc.max_allowed_incoming_connections", _compute_connections_per_port(options)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        # Small flow-control windows: a stalled reader causes back-pressure soon.
        ("grpc.http2.bdp_probe", 0),
        # Clients with keepalive ping during a long prefill, when no data flows: by default the
        # server would answer a few pings within five minutes with GOAWAY. Clients ping
        # every 9 s, but not to the millisecond: a bound of 9 s would refuse some.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _PING_AFTER_MS),
        ("grpc.keepalive_timeout_ms", _PING_ANSWER_MS),
        ("grpc.http2.ping_timeout_ms", _PING_ANSWER_MS),
        # With SO_REUSEPORT two servers on one port would share the callers.
        ("grpc.so_reuseport", 0),
    )


def _compute_connections_per_port(options: ServerOptions) -> int:
    num_ports = 0
    for address in options.listen:
        endpoint = parse_address(address)
        num_ports += 1 if endpoint.port is None or is_ip_address(endpoint.address) else 2
    return max(options.max_connections // max(num_ports, 1), 1)


def _bind(rpc_server: RpcServer, address: str, options: ServerOptions) -> Endpoint:
    endpoint = parse_address(address)
    bound = [
        (f"--listen {given}", taken)
        for given, taken in zip(options.listen, rpc_server.endpoints, strict=False)
    ]
    if options.metrics_listen:
        taken = Endpoint(*parse_host_port(options.metrics_listen))
        bound.append((f"--metrics-listen {options.metrics_listen}", taken))

    def listen(target: str) -> int:
        try:
            # Permissions protect a Unix socket, and nothing that it carries leaves the machine.
            if options.tls is not None and endpoint.port is not None:
                return rpc_server.server.add_secure_port(
                    target, make_server_credentials(options.tls)
                )
            return rpc_server.server.add_insecure_port(target)
        except RuntimeError as error:
            raise ConfigurationError(f"--listen {address}: cannot listen there: {error}") from error

    if endpoint.port is None:
        if reason := find_duplicate(endpoint, (), bound):
            raise ConfigurationError(f"--listen {address}: cannot listen there: {reason}")
        unix_socket = UnixSocket(endpoint.address, options.socket_mode)
        rpc_server.sockets.append(unix_socket)
        unix_socket.bind(lambda path: listen(f"unix:{path}"))
        return endpoint
    allowed = options.insecure_listen_anywhere or options.is_guarded
    if not allowed and not is_loopback(endpoint.address):
        raise ConfigurationError(
            f"--listen {address}: {NEEDS_GUARD}; --insecure-listen-anywhere lifts this"
        )
    hosts = resolve_addresses(endpoint.address)
    port = endpoint.port or choose_port(hosts)
    if reason := find_obstacle(hosts, port):
        reason = find_duplicate(Endpoint(endpoint.address, port), hosts, bound) or reason
        raise ConfigurationError(f"--listen {address}: cannot listen there: {reason}")
    for host in hosts:
        port = listen(f"{_add_brackets(host)}:{port}")
    return Endpoint(endpoint.address, port)


def parse_address(address: str) -> Endpoint:
    """Parse "HOST:PORT", "[IPV6]:PORT" or "unix:PATH".

    Raises:
        ConfigurationError: the address has none of these forms.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if path and "\0" not in path:
            return Endpoint(path, None)
    elif address.startswith("unix-abstract:"):
        raise ConfigurationError(
            f"--listen {address!r}: abstract sockets have no permissions, so every process of the "
            "machine could connect; use unix:PATH"
        )
    else:
        with suppress(ValueError):
            return Endpoint(*parse_host_port(address))
    raise ConfigurationError(f"--listen {address!r}: expected HOST:PORT, [IPV6]:PORT or unix:PATH")


def _add_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
