"""Listening on a host name: on all of its addresses, or on none."""

import socket
from pathlib import Path

import pytest
from backend_process import find_free_port

from whence_server.domain.errors import ConfigurationError
from whence_server.rpc import listening
from whence_server.rpc.calls import CallLog
from whence_server.rpc.listening import choose_port, find_obstacle, resolve_addresses
from whence_server.rpc.server import ServerOptions, build_server


async def build(*addresses: str):
    options = ServerOptions(listen=addresses, insecure_listen_anywhere=True)
    return await build_server(options, {}, CallLog(lambda _: None))


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
        await build("192.0.2.1:0")
    assert capfd.readouterr().err == ""


SAME = {
    "localhost:PORT": ("127.0.0.1:PORT", "127.0.0.1"),
    "127.0.0.1:PORT": ("localhost:PORT", "127.0.0.1"),
    "[::ffff:127.0.0.1]:PORT": ("127.0.0.1:PORT", "127.0.0.1"),
    "0.0.0.0:PORT": ("127.0.0.1:PORT", "127.0.0.1"),
    "unix:s": ("unix:./s", "./s"),
    "unix:link/s": ("unix:s", "s"),
}


@pytest.mark.parametrize("first", SAME)
async def test_address_given_twice_is_refused_by_naming_both(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    second, shared = SAME[first]
    port = str(find_free_port())
    first, second = first.replace("PORT", port), second.replace("PORT", port)
    with pytest.raises(ConfigurationError) as caught:
        await build(first, second)
    assert caught.value.message == (
        f"--listen {second}: cannot listen there: --listen {first} already includes {shared}; "
        "leave one of the two out, or change it"
    )


async def test_address_of_the_metrics_page_is_refused_by_naming_both() -> None:
    with socket.create_server(("127.0.0.1", 0)) as page:
        address = f"127.0.0.1:{page.getsockname()[1]}"
        options = ServerOptions((address,), metrics_listen=address)
        with pytest.raises(ConfigurationError) as caught:
            await build_server(options, {}, CallLog(lambda _: None))
    assert caught.value.message == (
        f"--listen {address}: cannot listen there: --metrics-listen {address} already includes "
        "127.0.0.1; leave one of the two out, or change it"
    )


async def test_different_addresses_are_all_listened_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = await build("127.0.0.1:0", "127.0.0.1:0", "127.0.0.2:0", "unix:s", "unix:t")
    await server.server.start()
    assert len(set(server.targets)) == 5
    await server.stop(0)


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
