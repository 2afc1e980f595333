"""Places of master keys, and the commands `whence-server key` and `verify` with keys."""

import base64
import logging
import os
import shutil
import stat
import sys
from pathlib import Path

import apsw
import pytest
from journal_records import FIRST, RUNNING, SECOND, fill
from sealed_journals import MASTER, OTHER_MASTER, make_options, write_keys

from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.key_sources import parse_key_source
from whence_server.journal.journal import Journal
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.sealing.key_source import read_master_keys
from whence_server.journal.sealing.master_keys import MasterKey, parse_master_keys
from whence_server.journal.sealing.masters import Masters

ID, OTHER_ID = MasterKey(MASTER).id, MasterKey(OTHER_MASTER).id


def read(text: str, **environment: str) -> list[str]:
    return [key.id for key in read_master_keys(parse_key_source(text), environment)]


def test_keys_are_read_from_a_file_a_variable_and_a_command(tmp_path):
    path = write_keys(tmp_path / "keys", MASTER, OTHER_MASTER)
    assert read(str(path)) == read(f"file:{path}") == [ID, OTHER_ID]
    assert read("env:KEYS", KEYS=MASTER.hex()) == [ID]
    program = tmp_path / "a program"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1])\n")
    program.chmod(0o700)
    assert read(f"exec:'{program}' {base64.b64encode(MASTER).decode()}") == [ID]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("kms:arn:aws:kms:eu:1:key/2", "kms: is no kind of place.*exec:COMMAND"),
        ("file:", "expected FILE"),
        ("", "expected FILE"),
    ],
)
def test_place_that_is_none_is_refused(text, match):
    with pytest.raises(ValueError, match=match):
        parse_key_source(text)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "there is no key"),
        ("# a comment\n\n", "there is no key"),
        (f"{MASTER.hex()}\nnot a key\n", "line 2 is no key"),
        (MASTER.hex()[:-2], "line 1 is no key"),
        (f"{MASTER.hex()}\n{base64.b64encode(MASTER).decode()}", "same key is given twice"),
    ],
)
def test_file_that_holds_no_keys_is_refused_without_quoting_it(tmp_path, content, match):
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=match) as caught:
        read(str(path))
    assert str(path) in str(caught.value)
    assert MASTER.hex()[:8] not in str(caught.value)


@pytest.mark.parametrize(("mode", "accepted"), [(0o644, 0), (0o660, 0), (0o440, 1), (0o400, 1)])
def test_file_that_others_can_read_is_refused(tmp_path, mode, accepted):
    path = write_keys(tmp_path / "keys", MASTER)
    path.chmod(mode)
    if accepted:
        assert read(str(path)) == [ID]
        return
    with pytest.raises(ConfigurationError, match=f"has mode {mode:04o}: others may read it"):
        read(str(path))


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("env:NOT_SET", "env:NOT_SET: the environment variable is not set"),
        ("exec:false", "exec:false: the command ended with status 1"),
        ("exec:/no/such/program", "cannot be read"),
        ("/no/such/file", "file:/no/such/file: cannot be read"),
    ],
)
def test_place_without_a_key_is_refused(place, match):
    with pytest.raises(ConfigurationError, match=match):
        read(place)


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_new_makes_a_private_file_and_puts_later_keys_first(tmp_path, capsys):
    path = tmp_path / "master.key"
    assert run("key", "new", "--journal-key", path) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (first,) = parse_master_keys(path.read_text())
    assert run("key", "new", "--journal-key", path) == 0
    newest, older = parse_master_keys(path.read_text())
    assert older.id == first.id
    said = capsys.readouterr().out
    assert said == f"{path}: new master key {first.id}\n{path}: new master key {newest.id}\n"
    assert all(line not in said for line in path.read_text().split())
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


def test_new_keeps_the_readers_of_the_file_and_a_link_to_it(tmp_path):
    path = write_keys(tmp_path / "master.key", MASTER)
    path.chmod(0o440)
    if os.geteuid() == 0:
        os.chown(path, 12_345, 54_321)
    before = path.stat()
    link = tmp_path / "link"
    link.symlink_to(path)
    assert run("key", "new", "--journal-key", link) == 0
    after = path.stat()
    assert link.is_symlink()
    assert len(parse_master_keys(path.read_text())) == 2
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        *(before.st_mode, before.st_uid, before.st_gid),
    )


def test_new_that_may_not_keep_the_owner_changes_nothing(tmp_path, capsys, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    path = write_keys(tmp_path / "master.key", MASTER)
    before = path.read_text()
    # As another user's file, for a user who may write the directory.
    fstat = os.fstat

    def as_another_user(descriptor):
        found = list(fstat(descriptor))
        found[stat.ST_UID] += 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", as_another_user)
    monkeypatch.setattr(os, "fchown", refuse)
    assert run("key", "new", "--journal-key", path) == 2
    assert "run this command as that user, or as root" in capsys.readouterr().err
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


def test_new_key_is_on_disk_with_its_name(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def note(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    path = tmp_path / "master.key"
    assert run("key", "new", "--journal-key", path) == 0
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_place_that_cannot_be_read_again_is_logged_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("whence_server.journal.sealing.masters._READ_AGAIN_S", 0.0)
    path = write_keys(tmp_path / "master.key", MASTER)
    masters = Masters(parse_key_source(str(path)), {})
    path.chmod(0o644)
    with caplog.at_level(logging.ERROR):
        assert masters.find(OTHER_ID) is None
        assert masters.find(OTHER_ID) is None
    (record,) = caplog.records
    assert f"{path}: has mode 0644" in record.getMessage()
    write_keys(path, OTHER_MASTER, MASTER)
    assert masters.find(OTHER_ID) is not None


def test_new_adds_nothing_to_a_file_of_another_kind(tmp_path, capsys):
    path = tmp_path / "notes"
    path.write_text("my notes\n")
    path.chmod(0o600)
    assert run("key", "new", "--journal-key", path) == 2
    assert path.read_text() == "my notes\n"
    assert "line 1 is no key" in capsys.readouterr().err
    assert run("key", "new", "--journal-key", "env:KEY") == 2
    assert "writes a file" in capsys.readouterr().err


async def test_rotate_and_list_show_what_each_master_key_wraps(tmp_path, capsys):
    key_file = write_keys(tmp_path / "master.key", MASTER)
    data_dir = tmp_path / "data"
    await fill(data_dir, make_options(key_file))
    write_keys(key_file, OTHER_MASTER, MASTER)
    keys = ("--journal-key", key_file, "--data-dir", data_dir)
    assert run("key", "list", *keys) == 0
    assert capsys.readouterr().out == (
        f"{OTHER_ID}  0 keys of generations\n{ID}  3 keys of generations  (wraps new keys)\n"
    )
    assert run("key", "rotate", *keys) == 0
    assert "3 keys were rewrapped" in capsys.readouterr().out
    write_keys(key_file, MASTER)
    assert run("key", "list", *keys) == 0
    assert capsys.readouterr().out == (
        f"{ID}  0 keys of generations\n"
        f"{OTHER_ID}  3 keys of generations  (wraps new keys, not given by --journal-key)\n"
    )


async def test_verify_looks_into_the_content_with_the_key_alone(tmp_path, capsys):
    key_file = write_keys(tmp_path / "master.key", MASTER)
    data_dir = tmp_path / "data"
    await fill(data_dir, make_options(key_file))
    before = {path: path.read_bytes() for path in data_dir.iterdir()}
    assert run("verify", "--data-dir", data_dir) == 0
    assert "3 generations are encrypted: their content was not looked into" in (
        capsys.readouterr().out
    )
    assert run("verify", "--data-dir", data_dir, "--journal-key", key_file) == 0
    assert "note" not in capsys.readouterr().out
    write_keys(key_file, OTHER_MASTER)
    assert run("verify", "--data-dir", data_dir, "--journal-key", key_file) == 2
    assert f"does not give the master key {ID}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in data_dir.iterdir()} == before


async def test_prune_destroys_the_keys_that_a_restored_copy_brought_back(tmp_path, capsys):
    key_file = write_keys(tmp_path / "master.key", MASTER)
    data_dir = tmp_path / "data"
    await fill(data_dir, make_options(key_file))
    shutil.copy(data_dir / "keys.db", tmp_path / "copy.db")
    journal = await Journal.open(data_dir, sealing=make_options(key_file))
    await journal.delete(FIRST)
    await journal.close()
    shutil.copy(tmp_path / "copy.db", data_dir / "keys.db")
    verify = ("verify", "--data-dir", data_dir, "--journal-key", key_file)
    assert run(*verify) == 1
    assert f"content {FIRST}: it is deleted, and its key is still there" in capsys.readouterr().err
    assert run("key", "prune", "--data-dir", data_dir) == 0
    assert capsys.readouterr().out == "1 keys of deleted generations were destroyed\n"
    assert run(*verify) == 0


async def test_prune_destroys_keys_without_a_generation_only_if_it_is_told(tmp_path, capsys):
    key_file = write_keys(tmp_path / "master.key", MASTER)
    data_dir = tmp_path / "data"
    await fill(data_dir, make_options(key_file))
    # As the removal of remains does, with the record of the deletion.
    database = apsw.Connection(str(data_dir / "journal.db"))
    database.execute("DELETE FROM generations WHERE generation_id = ?", (FIRST,))
    database.close()
    prune = ("key", "prune", "--data-dir", data_dir)
    for _ in range(2):
        assert run(*prune) == 0
        assert capsys.readouterr().out == (
            "0 keys of deleted generations were destroyed\n"
            "1 keys of generations without a trace in the journal are left: --unknown destroys "
            "them, if the journal is the newest one\n"
        )
    assert run(*prune, "--unknown") == 0
    assert "1 keys of generations without a trace in the journal were destroyed" in (
        capsys.readouterr().out
    )
    keys = KeyDatabase(data_dir / "keys.db", read_only=True)
    assert {generation_id for generation_id, _ in keys.list_keys()} == {SECOND, RUNNING}
    keys.close()


async def test_a_copy_of_an_encrypted_journal_has_no_keys_until_they_are_copied(tmp_path, capsys):
    data_dir, copy = tmp_path / "data", tmp_path / "copy"
    options = make_options(tmp_path / "master.key")
    await fill(data_dir, options)
    assert run("backup", "--from", data_dir, "--to", copy) == 0
    assert "its keys are not copied" in capsys.readouterr().out
    assert [file.name for file in copy.iterdir()] == ["journal.db"]
    keys = ("key", "copy", "--from", data_dir / "keys.db", "--to", copy / "keys.db")
    assert run(*keys) == 0
    assert capsys.readouterr().out == "3 keys of generations were copied\n"
    assert run(*keys) == 2
    assert "has keys already" in capsys.readouterr().err
    journal = await Journal.open(copy, sealing=options)
    assert len(await journal.read(FIRST)) == 5
    await journal.close()
    await fill(tmp_path / "clear", None)
    assert run("backup", "--from", tmp_path / "clear", "--to", tmp_path / "clear copy") == 0
    assert "keys" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [("key", "rotate"), ("key", "list"), ("verify",)])
def test_keys_without_a_database_are_refused(tmp_path, command, capsys):
    key_file = write_keys(tmp_path / "master.key", MASTER)
    given = ("--journal-key", key_file, "--data-dir", tmp_path)
    assert run(*command, *given) == 2
    assert f"there is no database of keys {Path(tmp_path) / 'keys.db'}" in capsys.readouterr().err
