"""Listening on a host name: on all of its addresses, or on none."""

import socket

import pytest

from whence_server.domain.errors import ConfigurationError
from whence_server.rpc.calls import CallLog
from whence_server.rpc.listening import resolve_addresses
from whence_server.rpc.server import ServerOptions, build_server


async def build(address: str):
    return await build_server(ServerOptions(listen=(address,)), {}, CallLog(lambda _: None))


@pytest.mark.parametrize("address", resolve_addresses("localhost"))
async def test_name_is_refused_if_one_of_its_addresses_is_in_use(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as taken:
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"localhost:{port}: cannot listen there"):
            await build(f"localhost:{port}")


async def test_port_0_chooses_one_port_for_all_addresses_of_a_name() -> None:
    server = await build("localhost:0")
    await server.server.start()
    (endpoint,) = server.endpoints
    assert server.targets == [f"localhost:{endpoint.port}"]
    for address in resolve_addresses("localhost"):
        with socket.create_connection((address, endpoint.port), timeout=10):
            pass
    await server.stop(None)


def test_address_resolves_to_itself() -> None:
    for address in ("127.0.0.1", "::1", "0.0.0.0", "192.0.2.1"):
        assert resolve_addresses(address) == [address]
