"""Bound on calls without credentials, so that strangers leave places to callers that are known."""

from collections import Counter
from collections.abc import Callable

from whence_server.access.credentials import Credentials
from whence_server.domain.addresses import group_address
from whence_server.domain.errors import PublicCallsError

MAX_OF_ADDRESS = 1_024
"""Calls from one address, which is as many as one connection may have."""
MAX_OF_ALL = 8_192
"""Calls from all addresses: half of those that gRPC's server runs."""


class PublicCalls:
    """The running calls of public methods.

    Args:
        max_of_address: most calls from one address. Loopback has no such bound, because proxies
            connect from there.
        max_of_all: most calls from all addresses. Those over Unix sockets do not count: only the
            machine's own processes connect there, such as probes.
    """

    def __init__(self, max_of_address: int = MAX_OF_ADDRESS, max_of_all: int = MAX_OF_ALL) -> None:
        self._max_of_address = max_of_address
        self._max_of_all = max_of_all
        self._num_of_address: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of running calls that count."""
        return self._num_of_address.total()

    def take(self, credentials: Credentials) -> Callable[[], None]:
        """Take a place for a call; return a function that gives it back.

        Raises:
            PublicCallsError: too many such calls run.
        """
        if credentials.is_local_socket:
            return lambda: None
        address = group_address(credentials.address)
        if address and self._num_of_address[address] >= self._max_of_address:
            raise PublicCallsError("this address has", self._max_of_address)
        if len(self) >= self._max_of_all:
            raise PublicCallsError("all addresses together have", self._max_of_all)
        self._num_of_address[address] += 1
        return lambda: self._give_back(address)

    def _give_back(self, address: str) -> None:
        self._num_of_address[address] -= 1
        if not self._num_of_address[address]:
            del self._num_of_address[address]
