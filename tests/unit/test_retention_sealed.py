"""Retention of an encrypted journal: labels are digests there, and keys go with the content."""

import apsw
import pytest
from aged_journal import add, fill, list_kept, name
from sealed_journals import make_options, open_keys, read_files

from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError, GenerationHeldError
from whence_server.domain.retention import LabelAge, LabelPattern, RetentionPolicy
from whence_server.journal.journal import Journal
from whence_server.journal.retention import sweeper as sweeper_module
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.verify import verify_journal

DAY_S = 86_400
POLICY = RetentionPolicy(
    180 * DAY_S,
    label_ages=(LabelAge(LabelPattern("env", "test"), 7 * DAY_S),),
    holds=(LabelPattern("matter", "*"), LabelPattern("customer", "acme")),
)
FLAGS = (
    *("--retain", "180d", "--retain-label", "env=test=7d"),
    *("--hold-label", "matter=*", "--hold-label", "customer=acme"),
)
# Recorded before the encryption was turned on.
CLEAR = ((1, 300, {"matter": "x"}), (2, 299, {}), (3, 9, {"env": "test"}))
SEALED = (
    (4, 298, {"matter": "y"}),
    (5, 297, {"customer": "other"}),
    (6, 8, {"env": "test"}),
    (7, 8, {"env": "test", "customer": "acme"}),
    (8, 8, {"env": "production"}),
    (9, 0, {}),
)


@pytest.fixture
async def data_dir(tmp_path):
    directory = tmp_path / "data"
    await fill(directory, *CLEAR)
    await fill(directory, *SEALED, sealing=make_options(tmp_path / "master"))
    return directory


async def test_ages_and_holds_follow_labels_in_clear_and_encrypted_ones(
    data_dir, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(sweeper_module, "_LEAST_REMOVED", 1)
    journal = await Journal.open(data_dir, sealing=make_options(tmp_path / "master"))
    sweeper = journal.make_sweeper(POLICY)
    assert sweeper is not None
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 10)) == [1, 4, 7, 8, 9]
    assert sweeper.stats.num_held == 3
    for number in (1, 4, 7):
        with pytest.raises(GenerationHeldError, match=r"--hold-label (matter=|customer=acme)"):
            await journal.delete(name(number))
    add(journal, 10, 0, {"matter": "z"})
    await journal.close()
    report = verify_journal(data_dir, open_keys(data_dir, tmp_path / "master"))
    assert report.findings == []
    keys = KeyDatabase(data_dir / "keys.db", read_only=True)
    assert keys.find(name(6)) == []
    keys.close()


async def test_the_dry_run_needs_the_keys_for_labels(data_dir, tmp_path, capsys) -> None:
    arguments = ["retention", "--dry-run", "--data-dir", str(data_dir), *FLAGS]
    assert main(arguments) == 2
    assert "give their master key with --journal-key" in capsys.readouterr().err
    before = read_files(data_dir)
    assert main([*arguments, "--journal-key", str(tmp_path / "master")]) == 0
    assert read_files(data_dir) == before
    shown = capsys.readouterr().out
    assert "--retain-label env=test=7d: would delete 2 generations" in shown
    assert "--retain 180d: would delete 2 generations" in shown
    assert "held by --hold-label: 3 generations" in shown
    assert main([*arguments[:4], "--retain", "180d"]) == 0
    assert "--retain 180d: would delete 4 generations" in capsys.readouterr().out


async def test_encryption_is_seen_behind_a_generation_that_is_dated_ahead(tmp_path) -> None:
    await fill(tmp_path / "data", (1, -400, {}))
    await fill(tmp_path / "data", (2, 0, {}), sealing=make_options(tmp_path / "master"))
    (tmp_path / "data" / "keys.db").rename(tmp_path / "lost")
    with pytest.raises(ConfigurationError, match="give their master key"):
        await Journal.open(tmp_path / "data")
    with pytest.raises(ConfigurationError, match="keys"):
        await Journal.open(tmp_path / "data", sealing=make_options(tmp_path / "master"))


async def test_a_hold_binds_a_generation_whose_key_is_missing_and_no_other(
    data_dir, tmp_path
) -> None:
    keys = apsw.Connection(str(data_dir / "keys.db"))
    keys.execute("DELETE FROM data_keys WHERE generation_id IN (?, ?)", (name(4), name(5)))
    keys.close()
    journal = await Journal.open(data_dir, sealing=make_options(tmp_path / "master"))
    journal.make_sweeper(POLICY)
    with pytest.raises(GenerationHeldError):
        await journal.delete(name(4))
    await journal.delete(name(5))
    assert await list_kept(journal, range(4, 6)) == [4]
    await journal.close()
