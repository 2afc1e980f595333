"""A network namespace whose one cable to this machine a test cuts and mends."""

import os
import shutil
import subprocess
from typing import Self

_NETWORK = "10.{}.{}."
"""First three numbers of the cable's addresses, which depend on the process."""


class NamespaceRefusedError(Exception):
    """This machine allows no network namespaces."""


class NetworkNamespace:
    """Namespace with one interface, whose other end is on this machine; a context manager.

    Both ends drop packets in silence while the cable is cut. Files are common, and Unix sockets
    among them: a server in the namespace is called over its socket all the same.

    Attributes:
        host: address of this machine in the cable's network.
        prefix: command before the one that runs in the namespace.
    """

    def __init__(self) -> None:
        network = _NETWORK.format(200 + os.getpid() // 250 % 50, os.getpid() % 250)
        self._name = f"whence-test-{os.getpid()}"
        self._cable = f"wt{os.getpid() % 100_000_000}"
        self.host, self._guest = f"{network}1", f"{network}2"
        self.prefix = ("ip", "netns", "exec", self._name)

    def __enter__(self) -> Self:
        """Make it.

        Raises:
            NamespaceRefusedError: that is not allowed here.
        """
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise NamespaceRefusedError("they need root, and the program ip of iproute2")
        try:
            self._run("netns", "add", self._name)
            self._run("link", "add", self._cable, "type", "veth", "peer", "name", "up0")
            self._run("link", "set", "up0", "netns", self._name)
            self._run("address", "add", f"{self.host}/24", "dev", self._cable)
            self._run("link", "set", self._cable, "up")
            self._run("-n", self._name, "address", "add", f"{self._guest}/24", "dev", "up0")
            self._run("-n", self._name, "link", "set", "up0", "up")
            self._run("-n", self._name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            raise NamespaceRefusedError(error.stderr) from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        for arguments in (("link", "delete", self._cable), ("netns", "delete", self._name)):
            subprocess.run(("ip", *arguments), capture_output=True, check=False)

    def cut(self) -> None:
        """Drop everything that either side sends; nobody is told."""
        self._run("link", "set", self._cable, "down")

    def mend(self) -> None:
        """Let packets through again."""
        self._run("link", "set", self._cable, "up")

    def _run(self, *arguments: str) -> None:
        subprocess.run(("ip", *arguments), check=True, capture_output=True, text=True, timeout=30)
