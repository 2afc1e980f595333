"""`whence-server retention --dry-run`: says what a sweep does afterwards, and changes nothing."""

import hashlib

import apsw
import pytest
from aged_journal import fill, list_kept

from whence_server.cli import main
from whence_server.domain.retention import LabelAge, LabelPattern, RetentionPolicy
from whence_server.journal.journal import Journal
from whence_server.journal.retention.pages_in_use import measure_use

MIXED = (
    (1, 400, {"matter": "2031-17"}),
    (2, 300, {}),
    (3, 181, {"team": "red"}),
    (4, 179, {}),
    (5, 8, {"env": "test"}),
    (6, 6, {"env": "test"}),
    (7, 0, {}),
)
POLICY = RetentionPolicy(
    180 * 86_400,
    label_ages=(LabelAge(LabelPattern("env", "test"), 7 * 86_400),),
    holds=(LabelPattern("matter", "*"),),
)
FLAGS = ("--retain", "180d", "--retain-label", "env=test=7d", "--hold-label", "matter=*")


def digest_of(directory) -> str:
    return hashlib.sha256((directory / "journal.db").read_bytes()).hexdigest()


def show(directory, *flags: str) -> int:
    return main(["retention", "--dry-run", "--data-dir", str(directory), *flags])


async def test_the_plan_is_what_a_sweep_then_does(tmp_path, capsys) -> None:
    await fill(tmp_path, *MIXED)
    before = digest_of(tmp_path)
    assert show(tmp_path, *FLAGS) == 0
    assert digest_of(tmp_path) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" in use")
    assert [line.split(" with ")[0] for line in lines[1:]] == [
        "--retain-label env=test=7d: would delete 1 generation",
        "--retain 180d: would delete 2 generations",
        "held by --hold-label: 1 generation",
    ]
    journal = await Journal.open(tmp_path)
    sweeper = journal.make_sweeper(POLICY)
    assert sweeper is not None
    await sweeper.sweep()
    assert sweeper.stats.num_deleted == {"age": 3, "size": 0}
    await journal.close()


async def test_a_running_server_does_not_matter(tmp_path, capsys) -> None:
    await fill(tmp_path, *MIXED)
    journal = await Journal.open(tmp_path)
    assert show(tmp_path, *FLAGS) == 0
    assert "--retain 180d: would delete 2 generations" in capsys.readouterr().out
    assert await list_kept(journal, range(1, 8)) == [1, 2, 3, 4, 5, 6, 7]
    await journal.close()


async def test_an_export_that_is_behind_is_counted(tmp_path, capsys) -> None:
    await fill(tmp_path, (1, 400, {}), (2, 181, {}), (3, 0, {}))
    journal = await Journal.open(tmp_path)
    journal.advance("otlp-spans", 3)
    await journal.close()
    show(tmp_path, "--retain", "180d")
    out = capsys.readouterr().out
    assert "--retain 180d: would delete 1 generation with" in out
    assert "1 generation of them not read by every export" in out
    assert "kept for an export that has not read them: 1 generation" in out


async def test_what_waits_by_age_and_by_size_is_counted_once(tmp_path, capsys) -> None:
    await fill(tmp_path, (1, 181, {}), (2, 0, {}), num_steps=1_000, step_bytes=700)
    journal = await Journal.open(tmp_path)
    journal.advance("otlp-spans", 3)
    await journal.close()
    connection = apsw.Connection(str(tmp_path / "journal.db"))
    most_bytes = int(measure_use(connection) / 1.1)
    connection.close()
    show(tmp_path, "--retain", "180d", "--retain-bytes", str(most_bytes))
    out = capsys.readouterr().out
    assert "kept for an export that has not read them: 2 generations" in out


async def test_a_size_is_planned_from_the_oldest_on(tmp_path, capsys) -> None:
    generations = [(i, 50 - i, {}) for i in range(1, 41)]
    await fill(tmp_path, *generations, num_steps=100, step_bytes=700)
    show(tmp_path, "--retain-bytes", "2500000")
    (line,) = (it for it in capsys.readouterr().out.splitlines() if "would" in it)
    assert line.startswith("--retain-bytes 2.5MB: would delete ")
    assert 12 < int(line.split()[4]) < 25


async def test_no_rule_and_nothing_due_are_told_apart(tmp_path, capsys) -> None:
    await fill(tmp_path, (1, 1, {}))
    show(tmp_path)
    assert "no setting deletes anything" in capsys.readouterr().out
    show(tmp_path, "--retain", "2d")
    assert "nothing would be deleted" in capsys.readouterr().out


def test_a_wrong_setting_or_directory_is_refused(tmp_path, capsys, monkeypatch) -> None:
    assert show(tmp_path) == 2
    assert "holds no journal" in capsys.readouterr().err
    monkeypatch.setenv("WHENCE_RETAIN", "soon")
    assert show(tmp_path) == 2
    assert "WHENCE_RETAIN 'soon': expected" in capsys.readouterr().err


def test_without_dry_run_the_command_does_nothing(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["retention", "--data-dir", str(tmp_path)])
    assert ended.value.code == 2
    assert "--dry-run" in capsys.readouterr().err
