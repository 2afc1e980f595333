"""Environment of all tests, and fixtures that several suites share."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres import PostgresServer
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

    from whence_server.domain.journal_url import JournalUrl
    from whence_server.journal.findings import VerifyReport

# Read once, when torch and numba are loaded, by this process and by those that tests start. One
# thread, which sleeps while it waits: others are at work on the same cores. What was compiled
# for one process is there for the next.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "numba"))

# Some images switch it off: each server of a test would then compile its code, for a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Collecting tests makes a million objects that stay. Looking for garbage among them would take each
# worker a third of the time.
gc.disable()

# A shell lets what it runs in the background ignore SIGINT, and child processes inherit that: an
# interrupt, which tests send to them, would do nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Collect garbage in a process that only hands tests to others."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: "Producer"
) -> "LoadFileScheduling | None":
    """Give the tests of one architecture to one worker, which then loads its models once."""
    if config.getoption("dist") != "loadfile":
        return None
    from distribution import ByArchitecture

    return ByArchitecture(config, log)


def pytest_collection_finish() -> None:
    """Collect garbage from now on, of what comes from now on.

    A million objects of modules and tests stay to the end. Looking through them took 0.8 s each
    time, several times a training.
    """
    # Its plugins look for who refers to their generators, and see nothing that is frozen.
    import hypothesis  # noqa: F401

    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the directory of a tiny saved model, made once for each (architecture, seed)."""
    from tiny_models import save_tiny_model

    made: dict[tuple[str, int], Path] = {}

    def make(architecture: str = "gpt2", seed: int = 0) -> Path:
        key = (architecture, seed)
        if key not in made:
            directory = tmp_path_factory.mktemp(f"{architecture}-{seed}")
            made[key] = save_tiny_model(directory, architecture, seed)
        return made[key]

    return make


@pytest.fixture(scope="session")
def postgres() -> "Iterator[PostgresServer]":
    """Runs a PostgreSQL server for the tests of one process."""
    from postgres import PostgresServer

    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def use_store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> "Callable[[str], JournalUrl | None]":
    """Gives a function that opens every journal of the test in "sqlite" or in "postgres".

    The function returns the place for the keys of encrypted journals; None for the default.
    """

    def use(name: str) -> "JournalUrl | None":
        if name == "sqlite":
            return None
        server = request.getfixturevalue("postgres")
        from whence_server.domain.journal_url import JournalUrl
        from whence_server.journal import journal
        from whence_server.journal.postgres.store import PostgresStore

        monkeypatch.setattr(
            journal,
            "SqliteStore",
            lambda path, _: PostgresStore(server.make_journal_url(str(path))),
        )
        return JournalUrl(server.make_journal_url(f"keys of {tmp_path}"))

    return use


@pytest.fixture(params=["sqlite", "postgres"])
def each_store(request: pytest.FixtureRequest, use_store: Callable[[str], object]) -> str:
    """Opens every journal of the test in SQLite, then in PostgreSQL; the name of the database."""
    use_store(request.param)
    return str(request.param)


@pytest.fixture
def verify_store(
    each_store: str, request: pytest.FixtureRequest
) -> "Callable[[Path], VerifyReport]":
    """Gives a function that verifies the journal of a directory, whichever database it is in."""
    from whence_server.journal.verify import verify_journal

    if each_store == "sqlite":
        return verify_journal
    server = request.getfixturevalue("postgres")
    from whence_server.journal.postgres.verify import verify_database

    return lambda directory: verify_database(server.make_journal_url(str(directory / "journal.db")))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Has torch compute with one thread, as what is compared to the bit has to."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Directory of SmolLM2-135M-Instruct, from the user's cache.

    The first process that asks downloads and converts the model, and the others wait for it. The
    test is skipped, with the reason, if the model is neither cached nor to be downloaded.
    """
    from required import skip_without

    from whence_server.demo.real_model import ensure_real_model
    from whence_server.domain.errors import ConfigurationError

    try:
        return ensure_real_model()
    except ConfigurationError as error:
        skip_without("real_model", str(error))
