"""Targets on this machine, which no HTTP proxy from the environment may stand before."""

import pytest

from whence.channel import make_channel_options
from whence.loopback import is_local

LOCAL = [
    "127.0.0.1:1",
    "127.8.9.1:1",
    "127.1:1",
    "0.0.0.0:1",
    "localhost:1",
    "LOCALHOST:1",
    "localhost.:1",
    "a.localhost:1",
    "ip6-localhost:1",
    "[::1]:1",
    "[::]:1",
    "[0:0:0:0:0:0:0:1]:1",
    "[::ffff:127.0.0.1]:1",
    "[::ffff:7f00:1]:1",
    "[::1%lo]:1",
    "dns:localhost:1",
    "dns:localhost",
    "dns:///localhost:1",
    "dns:///127.0.0.1:1",
    "dns:///[::1]:1",
    "dns://8.8.8.8/localhost:1",
    "ipv4:127.0.0.1:1",
    "ipv4:127.0.0.1:1,127.0.0.2:1",
    "ipv6:[::1]:1",
    "ipv6:%5B::1%5D:1",
    "unix:x",
    "unix:///x",
    "unix-abstract:x",
    "vsock:1:2",
]

REMOTE = [
    "example.org:1",
    "unix-host.example:1",
    "unix.example:1",
    "vsock.example:1",
    "127.example.com:1",
    "127.0.0.1.example.com:1",
    "localhost.example.com:1",
    "mylocalhost:1",
    "10.0.0.1:1",
    "[2001:db8::1]:1",
    "[::ffff:10.0.0.1]:1",
    "dns:example.org:1",
    "dns:///example.org:1",
    "dns://127.0.0.1/example.org:1",
    "ipv4:10.0.0.1:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
    "ipv6:[2001:db8::1]:1",
    "xds:///localhost",
]


@pytest.mark.parametrize("target", LOCAL)
def test_no_proxy_stands_before_this_machine(target):
    assert is_local(target)
    assert ("grpc.enable_http_proxy", 0) in make_channel_options(target)


@pytest.mark.parametrize("target", REMOTE)
def test_a_proxy_may_stand_before_another_machine(target):
    assert not is_local(target)
    assert "grpc.enable_http_proxy" not in dict(make_channel_options(target))
