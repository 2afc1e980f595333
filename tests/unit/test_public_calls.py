"""Calls without credentials leave places to others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived
from h2.settings import SettingCodes
from waiting import wait_until

from whence_server.access.credentials import Credentials
from whence_server.access.gate import Gate
from whence_server.access.public_calls import PublicCalls
from whence_server.access.token_file import TokenFile
from whence_server.domain.errors import PublicCallsError
from whence_server.rpc.standard import Health, make_reflection_handlers

HEALTH = "/grpc.health.v1.Health"


def take(calls: PublicCalls, *addresses: str) -> list[Callable[[], None]]:
    return [calls.take(Credentials(address=address)) for address in addresses]


def test_one_address_has_its_share_and_gets_places_back() -> None:
    calls = PublicCalls(2, 100)
    first, _ = take(calls, "192.0.2.7", "192.0.2.7")
    with pytest.raises(PublicCallsError, match="this address has 2 running calls"):
        take(calls, "192.0.2.7")
    take(calls, "192.0.2.8")
    first()
    take(calls, "192.0.2.7")
    assert len(calls) == 3


def test_addresses_of_one_ipv6_network_are_one() -> None:
    calls = PublicCalls(2, 100)
    take(calls, "2001:db8::1", "2001:db8::2")
    with pytest.raises(PublicCallsError):
        take(calls, "2001:db8::3")
    take(calls, "2001:db8:0:1::1")


def test_all_addresses_together_have_a_bound_and_loopback_has_no_other() -> None:
    calls = PublicCalls(2, 5)
    take(calls, "192.0.2.7", "127.0.0.1", "127.0.0.1", "::1", "192.0.2.8")
    for address in ("127.0.0.1", "192.0.2.9"):
        with pytest.raises(PublicCallsError, match="all addresses together have 5"):
            take(calls, address)


def test_unix_sockets_do_not_count() -> None:
    calls = PublicCalls(1, 1)
    take(calls, "192.0.2.7")
    for _ in range(3):
        calls.take(Credentials(is_local_socket=True, address="unix"))
    assert len(calls) == 1


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    path = tmp_path / "callers"
    path.write_text("")
    made = Gate(TokenFile(path), public=["health", "reflection"])
    made.public_calls = PublicCalls(1, 2)
    return made


@pytest.fixture
async def port(gate: Gate) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (Health(gate).make_handler(), *make_reflection_handlers((), gate))
    )
    number = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield number
    await server.stop(None)


@pytest.fixture
async def channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made


async def test_watches_beyond_the_bound_are_refused_until_others_end(
    gate: Gate, channel: grpc.aio.Channel
) -> None:
    check = channel.unary_unary(
        f"{HEALTH}/Check",
        HealthCheckRequest.SerializeToString,
        HealthCheckResponse.FromString,
    )
    watch = channel.unary_stream(
        f"{HEALTH}/Watch",
        HealthCheckRequest.SerializeToString,
        HealthCheckResponse.FromString,
    )
    # A call that has sent no message yet counts too.
    silent = channel.stream_unary(f"{HEALTH}/Check")()
    watching = watch(HealthCheckRequest())
    assert (await watching.read()).status == HealthCheckResponse.SERVING
    await wait_until(lambda: len(gate.public_calls) == 2)
    with pytest.raises(grpc.aio.AioRpcError, match="2 running calls without") as caught:
        await check(HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watching.cancel()
    await wait_until(lambda: len(gate.public_calls) == 1)
    for _ in range(3):
        assert (await check(HealthCheckRequest())).status == HealthCheckResponse.SERVING
        await wait_until(lambda: len(gate.public_calls) == 1)
    silent.cancel()
    await wait_until(lambda: len(gate.public_calls) == 0)


async def test_an_answer_that_nobody_reads_keeps_its_place(gate: Gate, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = H2Connection(H2Configuration(client_side=True))
    connection.initiate_connection()
    connection.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"{HEALTH}/Check"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    for stream in (1, 3, 5):
        connection.send_headers(stream, headers)
        connection.send_data(stream, b"\0" * 5, end_stream=True)
    answered: dict[int, dict[bytes, bytes]] = {}
    async with asyncio.timeout(30):
        while len(answered) < 3:
            writer.write(connection.data_to_send())
            for event in connection.receive_data(await reader.read(65_536)):
                if isinstance(event, ResponseReceived):
                    answered[event.stream_id] = dict(event.headers)
    # The methods of two have ended, and their answers wait; the third is refused.
    assert [b"grpc-status" in answered[stream] for stream in (1, 3, 5)] == [False, False, True]
    assert answered[5][b"grpc-status"] == b"8"
    assert len(gate.public_calls) == 2
    writer.close()
    await wait_until(lambda: len(gate.public_calls) == 0)
