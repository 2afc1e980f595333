"""Listening on a host name: on all of its addresses, or on none."""

import socket

import pytest

from whence_server.domain.errors import ConfigurationError
from whence_server.rpc import listening
from whence_server.rpc.calls import CallLog
from whence_server.rpc.listening import choose_port, find_obstacle, resolve_addresses
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
        told = f"localhost:{port}: cannot listen there: {address}: another process listens there"
        with pytest.raises(ConfigurationError) as caught:
            await build(f"localhost:{port}")
        assert told in caught.value.message
        others = [other for other in resolve_addresses("localhost") if other != address]
        assert find_obstacle(others, port) == "", "none of the addresses was bound"


async def test_port_0_chooses_one_port_for_all_addresses_of_a_name() -> None:
    server = await build("localhost:0")
    await server.server.start()
    (endpoint,) = server.endpoints
    assert server.targets == [f"localhost:{endpoint.port}"]
    for address in resolve_addresses("localhost"):
        with socket.create_connection((address, endpoint.port), timeout=10):
            pass
    await server.stop(None)


async def test_refusal_gives_the_reason_in_the_error_and_no_line_of_grpc(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match="another process listens there; stop it"):
            await build(f"127.0.0.1:{port}")
    with pytest.raises(ConfigurationError, match="Cannot assign requested address"):
        await build_server(
            ServerOptions(("192.0.2.1:0",), insecure_listen_anywhere=True),
            {},
            CallLog(lambda _: None),
        )
    assert capfd.readouterr().err == ""


def test_address_that_answers_is_refused_even_if_it_can_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_sharing_socket(_host: str) -> socket.socket:
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return opened

    monkeypatch.setattr(listening, "_open_socket", open_sharing_socket)
    with open_sharing_socket("127.0.0.1") as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        assert find_obstacle(["127.0.0.1"], port) == "", "it can be bound, and nobody answers"
        other.listen()
        assert "another process listens there" in find_obstacle(["127.0.0.1"], port)


def test_listener_on_all_addresses_is_found_on_each() -> None:
    with socket.create_server(("0.0.0.0", 0)) as anywhere:
        port = anywhere.getsockname()[1]
        assert "another process listens there" in find_obstacle(["127.0.0.1"], port)


def test_chosen_port_is_free_on_all_addresses() -> None:
    hosts = resolve_addresses("localhost")
    port = choose_port(hosts)
    assert (port == 0) == (len(hosts) == 1)
    assert find_obstacle(hosts, port) == ""
    assert choose_port(["127.0.0.1"]) == 0


def test_address_resolves_to_itself() -> None:
    for address in ("127.0.0.1", "::1", "0.0.0.0", "192.0.2.1"):
        assert resolve_addresses(address) == [address]
