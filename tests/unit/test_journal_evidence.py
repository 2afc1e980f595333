"""Verification changes no file, reads the write-ahead log, and reports faults as findings."""

import asyncio
import fcntl
import os
import random
import shutil
import subprocess
import sys

import apsw
import pytest
from journal_records import DELETED, FIRST, begin, end, fill

from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError
from whence_server.journal.evidence import open_evidence
from whence_server.journal.journal import Journal
from whence_server.journal.verify import verify_evidence, verify_journal
from whence_server.journal.wal import read_log

PAGE, FRAME = 4096, 4096 + 24


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Fill a journal once; each test gets a copy."""
    directory = tmp_path_factory.mktemp("template")
    asyncio.run(fill(directory))
    return directory


@pytest.fixture
def data_dir(template, tmp_path):
    return shutil.copytree(template, tmp_path / "data")


@pytest.fixture
async def live(tmp_path):
    """Copy a journal of a killed server, with most of it in the write-ahead log."""
    journal = await Journal.open(tmp_path / "source")
    for number in range(1, 6):
        begin(journal, f"00000000-0000-4000-8000-{number:012d}", number)
        await journal.flush()
        end(journal, f"00000000-0000-4000-8000-{number:012d}", number)
        await journal.flush()
    shutil.copytree(tmp_path / "source", tmp_path / "copy")
    await journal.close()
    return tmp_path / "copy"


def state_of(directory):
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(directory.iterdir())
    } | {".": directory.stat().st_mtime_ns}


def contents(directory):
    """Return a copy's content as SQLite itself reads it; None if SQLite cannot read it."""
    copy = directory.parent / "read"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    (copy / "journal.db-shm").unlink(missing_ok=True)
    try:
        connection = apsw.Connection(str(copy / "journal.db"))
        return tables(connection)
    except (apsw.Error, UnicodeDecodeError):
        return None
    finally:
        connection.close()


def tables(connection):
    """Return the rows of every table and of one index."""
    names = ("writers", "generations", "entries", "labels", "cursors", "sqlite_schema")
    rows = [connection.execute(f"SELECT * FROM {name}").fetchall() for name in names]
    indexed = connection.execute(
        "SELECT generation, offset, kind FROM entries ORDER BY generation, offset, kind"
    ).fetchall()
    return [*rows, indexed]


async def test_log_of_a_killed_server_is_read_and_no_file_changes(live):
    before = state_of(live)
    assert (live / "journal.db-wal").stat().st_size > 5 * FRAME
    report = verify_journal(live)
    assert [str(finding) for finding in report.findings] == []
    assert (report.num_entries, report.num_generations) == (30, 5)
    assert state_of(live) == before
    # SQLite's own reading of a copy is the oracle.
    assert len(contents(live)[2]) == 30


def test_read_only_directory_can_be_verified(live):
    for path in [*live.iterdir(), live]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    command = [sys.executable, "-m", "whence_server", "verify", "--data-dir", str(live)]
    if os.geteuid() == 0:
        # Root may write everywhere: it gives that up first.
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
        if shutil.which("setpriv") is None:
            pytest.skip("root can write to every directory, and setpriv is not installed")
    before = state_of(live)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "30 entries of 5 generations, intact" in done.stdout
    assert state_of(live) == before


@pytest.mark.parametrize("place", [0, 9, 17, 25, 31])
async def test_a_flipped_byte_in_the_logs_header_is_found(live, place):
    flip(live / "journal.db-wal", place)
    text = "\n".join(map(str, verify_journal(live).findings))
    assert "header is damaged" in text


@pytest.mark.parametrize("within", [0, 4, 5, 8, 15, 16, 23, 24, 2000, FRAME - 1])
async def test_a_flipped_byte_in_any_frame_is_found(live, within):
    log = live / "journal.db-wal"
    whole = log.read_bytes()
    num_frames = (len(whole) - 32) // FRAME
    for number in (0, 1, num_frames // 2, num_frames - 1):
        flip(log, 32 + number * FRAME + within)
        report = verify_journal(live)
        words = "\n".join(map(str, report.findings))
        assert f"frame {number + 1} of the write-ahead log is damaged" in words
        assert f"{num_frames - number} frames" in words
        log.write_bytes(whole)


async def test_uncommitted_frames_after_a_full_disk_are_not_a_fault(live):
    """A full disk leaves frames with the log's own salts and without a commit."""
    log = live / "journal.db-wal"
    whole = log.read_bytes()
    salts = whole[16:24]
    frame = b"\x00\x00\x00\x02" + bytes(4) + salts + bytes(8) + bytes(PAGE)
    log.write_bytes(whole + 3 * frame)
    report = verify_journal(live)
    assert (report.intact, report.num_entries) == (True, 30)
    assert "3 frames that were never committed" in report.notes[0]


@pytest.mark.parametrize("bit", range(32))
async def test_flipped_bit_in_a_commit_frame_is_found(live, bit):
    """A frame's database size after a commit is zero in frames that end no commit."""
    log = live / "journal.db-wal"
    last = 32 + ((log.stat().st_size - 32) // FRAME - 1) * FRAME
    flip(log, last + 4 + bit // 8, 1 << bit % 8)
    assert "damaged" in str(verify_journal(live).findings[0])


@pytest.mark.parametrize("seed", range(12))
async def test_a_damaged_log_is_read_as_far_as_sqlite_reads_it(live, seed):
    """Compare the readable content with that of SQLite on a copy."""
    log = live / "journal.db-wal"
    whole, choose = log.read_bytes(), random.Random(seed)
    for _ in range(5):
        if choose.random() < 0.3:
            os.truncate(log, choose.randrange(len(whole)))
        else:
            flip(log, choose.randrange(len(whole)), 1 << choose.randrange(8))
        with open_evidence(live) as evidence:
            report = verify_evidence(evidence)
            mine = tables(evidence.connection) if evidence.connection.pragma("user_version") else []
        theirs = contents(live) if mine else []
        assert mine == theirs
        assert not report.intact or len(mine[2]) == 30
        log.write_bytes(whole)


async def test_truncated_log_is_found_by_its_index(live):
    os.truncate(live / "journal.db-wal", 32 + 5 * FRAME)
    text = "\n".join(map(str, verify_journal(live).findings))
    assert "its newest transactions are gone" in text


async def test_uncommitted_transaction_is_not_a_fault(live):
    log = live / "journal.db-wal"
    with log.open("ab") as file:
        file.write(b"\x00" * 100)
    report = verify_journal(live)
    assert report.intact
    assert "ends with an incomplete frame" in report.notes[0]


@pytest.mark.parametrize("seed", range(16))
def test_flipped_byte_of_the_database_is_found_or_without_effect(data_dir, seed):
    database = data_dir / "journal.db"
    choose = random.Random(seed)
    before = contents(data_dir)
    for _ in range(6):
        whole = database.read_bytes()
        place = choose.randrange(len(whole))
        flip(database, place, 1 << choose.randrange(8))
        report = verify_journal(data_dir)
        if report.intact:
            assert contents(data_dir) == before, f"byte {place}"
        database.write_bytes(whole)


@pytest.mark.parametrize("page", range(1, 12))
def test_a_page_of_garbage_is_a_finding_and_no_traceback(data_dir, page, capsys):
    with (data_dir / "journal.db").open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(random.Random(page).randbytes(PAGE))
    assert main(["verify", "--data-dir", str(data_dir)]) == 1
    assert "not intact" in capsys.readouterr().err


def test_empty_database_file_has_nothing_to_verify(tmp_path, capsys):
    (tmp_path / "journal.db").write_bytes(b"")
    assert main(["verify", "--data-dir", str(tmp_path)]) == 3
    assert "nothing to verify" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["journal.db"]


async def test_journal_without_entries_has_nothing_to_verify(tmp_path):
    await (await Journal.open(tmp_path)).close()
    assert main(["verify", "--data-dir", str(tmp_path)]) == 3


@pytest.mark.parametrize("what", ["nothing", "missing", "in use", "newer"])
async def test_unverifiable_journal_has_its_own_exit_status(tmp_path, what, capsys):
    if what == "missing":
        (tmp_path / "journal.db-wal").write_bytes(b"left behind")
    if what in {"in use", "newer"}:
        await (await Journal.open(tmp_path)).close()
    if what == "newer":
        database = apsw.Connection(str(tmp_path / "journal.db"))
        database.pragma("user_version", 99)
        database.close()
    lock = os.open(tmp_path / "journal.lock", os.O_CREAT | os.O_RDWR)
    if what == "in use":
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert main(["verify", "--data-dir", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    os.close(lock)


def test_differences_are_printed_and_repaired_with_rebuild(data_dir, capsys):
    database = apsw.Connection(str(data_dir / "journal.db"))
    database.execute("UPDATE generations SET model = 'other' WHERE generation_id = ?", (FIRST,))
    database.close()
    arguments = ["verify", "--data-dir", str(data_dir)]
    assert main(arguments) == 1
    assert f"generations {FIRST} model: stored 'other', expected 'tiny'" in capsys.readouterr().err
    assert main([*arguments, "--rebuild"]) == 0
    assert "1 rows were rebuilt" in capsys.readouterr().out
    assert main(arguments) == 0


def test_rebuild_of_a_broken_chain_is_refused(data_dir, capsys):
    database = apsw.Connection(str(data_dir / "journal.db"))
    database.execute("UPDATE generations SET model = 'other' WHERE generation_id = ?", (FIRST,))
    database.execute("UPDATE entries SET payload = x'00' WHERE position = 3")
    database.close()
    assert main(["verify", "--data-dir", str(data_dir), "--rebuild"]) == 1
    assert "the chain is broken" in capsys.readouterr().err
    database = apsw.Connection(str(data_dir / "journal.db"))
    query = "SELECT count(*) FROM generations WHERE model = 'other'"
    assert database.execute(query).get == 1


def test_a_secret_is_never_printed(data_dir, capsys):
    database = apsw.Connection(str(data_dir / "journal.db"))
    query = "SELECT secret FROM generations WHERE generation_id = ?"
    secret = database.execute(query, (FIRST,)).get
    database.execute("UPDATE generations SET secret = ? WHERE deleted = 1", (secret,))
    database.close()
    assert main(["verify", "--data-dir", str(data_dir)]) == 1
    said = capsys.readouterr().err
    assert DELETED in said
    assert secret.hex()[:16] not in said


def flip(path, place, mask=0x40):
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def test_missing_log_is_not_a_fault(tmp_path):
    assert read_log(tmp_path / "none", tmp_path / "none").faults == []


def test_a_directory_without_a_journal_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no journal"):
        verify_journal(tmp_path)


@pytest.mark.parametrize("how", ["gone", "empty"])
async def test_removed_log_is_found_by_its_index(live, how):
    if how == "gone":
        (live / "journal.db-wal").unlink()
    else:
        (live / "journal.db-wal").write_bytes(b"")
    (fault,) = verify_journal(live).findings[:1]
    assert "the write-ahead log is gone" in str(fault)


async def test_removed_log_without_uncopied_frames_is_not_a_fault(tmp_path):
    journal = await Journal.open(tmp_path / "source")
    begin(journal, FIRST, 1)
    end(journal, FIRST, 1)
    await journal.flush()
    database = apsw.Connection(str(tmp_path / "source" / "journal.db"))
    database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    shutil.copytree(tmp_path / "source", tmp_path / "copy")
    database.close()
    await journal.close()
    (tmp_path / "copy" / "journal.db-wal").unlink()
    report = verify_journal(tmp_path / "copy")
    assert (report.findings, report.num_generations) == ([], 1)


async def test_symbolic_link_is_followed_to_the_database_and_its_log(live):
    whole = verify_journal(live)
    real = live.parent / "elsewhere"
    real.mkdir()
    for suffix in ("", "-wal", "-shm"):
        (live / f"journal.db{suffix}").rename(real / f"journal.db{suffix}")
    (live / "journal.db").symlink_to(real / "journal.db")
    assert verify_journal(live) == whole


@pytest.mark.parametrize("version", [1, 0, -3])
async def test_lowered_schema_version_is_found(data_dir, version):
    database = apsw.Connection(str(data_dir / "journal.db"))
    database.pragma("user_version", version)
    database.close()
    findings = verify_journal(data_dir).findings
    assert findings
    assert {finding.table for finding in findings} == {"schema"}


def test_changed_fixed_header_fields_are_found(data_dir):
    path = data_dir / "journal.db"
    whole = path.read_bytes()
    for place in [*range(18, 28), *range(44, 56), 59, *range(64, 96)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        assert not verify_journal(data_dir).intact, place


@pytest.mark.parametrize("extra", [bytes(PAGE), b"x" * PAGE, b"x" * 100, b"x" * 5 * PAGE])
def test_bytes_after_the_last_page_are_found(data_dir, extra):
    with (data_dir / "journal.db").open("ab") as file:
        file.write(extra)
    findings = [str(finding) for finding in verify_journal(data_dir).findings]
    assert any(f"{len(extra)} bytes after its last page" in finding for finding in findings)


@pytest.mark.parametrize("missing", [1, 100, PAGE - 1])
def test_file_that_ends_within_a_page_is_found(data_dir, missing):
    path = data_dir / "journal.db"
    os.truncate(path, path.stat().st_size - missing)
    assert "ends within a page" in str(verify_journal(data_dir).findings[0])


def test_rollback_journal_that_sqlite_would_apply_is_found(data_dir):
    beside = data_dir / "journal.db-journal"
    beside.write_bytes(bytes(512))
    assert verify_journal(data_dir).intact
    beside.write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(504))
    assert "journal.db-journal" in str(verify_journal(data_dir).findings[0])


@pytest.mark.parametrize("name", ["journal.db-wal", "journal.db-shm", "journal.db-journal"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_file_that_is_not_regular_is_found_without_blocking(data_dir, name, make):
    (data_dir / name).unlink(missing_ok=True)
    make(data_dir / name)
    assert f"{name} is not a regular file" in str(verify_journal(data_dir).findings[0])


def test_pipe_as_lock_file_does_not_block(data_dir):
    (data_dir / "journal.lock").unlink()
    os.mkfifo(data_dir / "journal.lock")
    assert verify_journal(data_dir).intact


def test_circular_links_are_refused_with_a_configuration_error(data_dir):
    (data_dir / "journal.db").unlink()
    (data_dir / "journal.db").symlink_to("journal.db")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        verify_journal(data_dir)


@pytest.mark.parametrize("filling", ["zeros", "noise"])
async def test_overwritten_frames_are_found_without_an_index(live, filling):
    (live / "journal.db-shm").unlink()
    path = live / "journal.db-wal"
    log = path.read_bytes()
    length = len(log) - 32 - 3 * FRAME
    noise = bytes(length) if filling == "zeros" else random.Random(0).randbytes(length)
    path.write_bytes(log[: 32 + 3 * FRAME] + noise)
    findings = [str(finding) for finding in verify_journal(live).findings]
    assert any("write-ahead log" in finding for finding in findings)
