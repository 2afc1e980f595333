"""Files with prompts and answers are private to their owner under every umask."""

import os
import stat

import pytest
from journal_cases import whole

from whence_server.journal.journal import Journal

FILES = {"journal.db", "journal.db-wal", "journal.db-shm", "journal.lock"}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


async def test_every_file_is_private_from_the_start(tmp_path, umask, caplog):
    journal = await Journal.open(tmp_path / "data")
    whole(journal, "g")
    await journal.flush()
    assert mode(tmp_path / "data") == 0o700
    found = {path.name: mode(path) for path in (tmp_path / "data").iterdir()}
    assert found == dict.fromkeys(FILES, 0o600)
    assert caplog.text == ""
    await journal.close()


async def test_files_of_earlier_versions_are_made_private(tmp_path):
    await (await Journal.open(tmp_path / "data")).close()
    (tmp_path / "data" / "digests.json").write_text("{}")
    for path in (tmp_path / "data").iterdir():
        path.chmod(0o644)
    journal = await Journal.open(tmp_path / "data")
    whole(journal, "g")
    await journal.flush()
    assert {mode(path) for path in (tmp_path / "data").iterdir()} == {0o600}
    await journal.close()


@pytest.mark.parametrize("open_mode", [0o755, 0o777, 0o750, 0o701])
async def test_directory_that_others_can_enter_is_logged_as_a_warning(tmp_path, open_mode, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(open_mode)
    await (await Journal.open(tmp_path / "data")).close()
    assert f"has mode {open_mode:04o}" in caplog.text
    assert mode(tmp_path / "data") == open_mode
