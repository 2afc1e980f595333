"""The limit of connections leaves file descriptors for the rest of the server."""

import subprocess
import sys

import pytest

from whence_server.rpc.descriptors import MAX_CONNECTIONS, compute_max_connections

SHOW = """
import resource
from whence_server.rpc.descriptors import raise_descriptor_limit
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], raise_descriptor_limit(),
      *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(64, 1), (256, 192), (1_024, 768), (4_096, 3_584), (1 << 20, MAX_CONNECTIONS)],
)
def test_connection_limit_reserves_descriptors(limit: int, expected: int) -> None:
    assert compute_max_connections(limit) == expected


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    shown = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 100; ulimit -Hn 512; exec "$@"', "sh", sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["100", "512", "512", "512"]
