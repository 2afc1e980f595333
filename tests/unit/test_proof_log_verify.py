"""`whence-server verify` over a transparency log that its operator has changed."""

import hashlib
import shutil

import apsw
import pytest
from journal_records import begin
from transparency import end_signed, make_options

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.merkle_tree import compute_root, hash_leaf
from whence.proof.notes import NoteSigner, VerifierKey
from whence_server.cli import main
from whence_server.journal.journal import Journal
from whence_server.journal.verify import verify_journal
from whence_server.proof.log.keys import load_key
from whence_server.proof.log.log import TransparencyLog
from whence_server.proof.log.sequencer import sign_state


async def fill(tmp_path, folder, texts):
    """Write a journal with its log; return the published checkpoint."""
    journal = await Journal.open(tmp_path / folder)
    log = await TransparencyLog.open(journal, make_options(tmp_path, origin="example.com/log"))
    await log.start()
    for number, text in enumerate(texts, 1):
        generation_id = f"00000000-0000-4000-9000-{number:012d}"
        begin(journal, generation_id, number)
        end_signed(journal, generation_id, text)
    await journal.flush()
    assert await log.flush(30)
    raw = await log.read_checkpoint()
    await log.close()
    await journal.close()
    return raw


@pytest.fixture
async def written(tmp_path):
    raw = await fill(tmp_path, "data", [f"text {it}" for it in range(300)])
    (tmp_path / "checkpoint").write_bytes(raw)
    return raw


def change(tmp_path, *statements):
    database = apsw.Connection(str(tmp_path / "data" / "journal.db"))
    for statement in statements:
        before = database.total_changes()
        database.execute(statement)
        assert database.total_changes() > before or statement.startswith("CREATE")
    database.close()


def find(tmp_path, *known, folder="data"):
    report = verify_journal(tmp_path / folder, None, known)
    return "\n".join(map(str, report.findings))


async def test_a_journal_agrees_with_its_log_and_with_every_known_checkpoint(written, tmp_path):
    digests = [hashlib.sha256(f"envelope text {it}".encode()).digest() for it in range(300)]
    key = VerifierKey.parse(await read_key(tmp_path))
    newest = verify_checkpoint(written, key).checkpoint
    assert newest.root == compute_root(map(hash_leaf, digests))
    signer = NoteSigner("example.com/log", load_key("", tmp_path / "log-key.pem"))
    earlier = [
        sign_state(signer, size, compute_root(map(hash_leaf, digests[:size])))
        for size in (0, 1, 255, 256, 257)
    ]
    assert find(tmp_path, written, *earlier) == ""
    wrong = sign_state(signer, 200, compute_root(map(hash_leaf, digests[:201])))
    assert "the first 200 entries are others" in find(tmp_path, wrong)


async def read_key(tmp_path):
    key = load_key("", tmp_path / "log-key.pem")
    return str(NoteSigner("example.com/log", key).key)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE tree_leaves SET digest = zeroblob(32) WHERE number = 7", "tree_leaves 7 digest"),
        ("UPDATE tree_leaves SET position = position + 1000000 WHERE number = 7", "not in the"),
        ("UPDATE tree_leaves SET position = position - 1 WHERE number = 7", "not the end of a"),
        ("DELETE FROM tree_leaves WHERE number = 7", "entry 7 is missing"),
        ("DELETE FROM tree_leaves WHERE number > 290", "the newest were cut off"),
        ("UPDATE tree_nodes SET hash = zeroblob(32)", "tree_nodes 0 of level 1 hash"),
        ("INSERT INTO tree_nodes VALUES (1, 1, zeroblob(32))", "tree_nodes 1 of level 1 hash"),
        ("UPDATE tree SET size = 299", "tree example.com/log size"),
        ("UPDATE tree_checkpoints SET note = x'00'", "control character"),
        ("UPDATE tree_checkpoints SET size = 299", "tree_checkpoints 299 size"),
        ("UPDATE tree SET verifier_key = x'6162'", "no verifier key"),
    ],
)
async def test_changes_in_the_logs_tables_are_found(written, tmp_path, statement, what):
    change(tmp_path, statement)
    assert what in find(tmp_path)


async def test_exchanged_leaves_are_found(written, tmp_path):
    change(
        tmp_path,
        "CREATE TEMP TABLE kept AS SELECT * FROM tree_leaves WHERE number IN (3, 9)",
        "DELETE FROM tree_leaves WHERE number IN (3, 9)",
        "INSERT INTO tree_leaves SELECT 12 - number, digest, writer, position FROM kept",
    )
    found = find(tmp_path, written)
    assert "tree_nodes 0 of level 1" in found
    assert "the first 300 entries are others than those of the checkpoint" in found


async def test_a_store_that_was_made_anew_contradicts_a_checkpoint_that_is_known(
    written, tmp_path, capsys
):
    """The operator rewrites everything consistently, with the same keys."""
    known = tmp_path / "checkpoint"
    texts = [f"text {it}" for it in range(300)]
    assert main(["verify", f"--data-dir={tmp_path / 'data'}", f"--checkpoint={known}"]) == 0
    assert capsys.readouterr().err == ""

    await fill(tmp_path, "changed", [*texts[:150], "another", *texts[151:], "one more"])
    assert main(["verify", f"--data-dir={tmp_path / 'changed'}"]) == 0
    arguments = ["verify", f"--data-dir={tmp_path / 'changed'}", f"--checkpoint={known}"]
    assert main(arguments) == 1
    assert "the first 300 entries are others" in capsys.readouterr().err

    await fill(tmp_path, "cut", texts[:280])
    assert main(["verify", f"--data-dir={tmp_path / 'cut'}"]) == 0
    arguments = ["verify", f"--data-dir={tmp_path / 'cut'}", f"--checkpoint={known}"]
    assert main(arguments) == 1
    assert "the log had 300 entries, and 280 are left" in capsys.readouterr().err

    (tmp_path / "log-key.pem").unlink()
    await fill(tmp_path, "rekeyed", texts)
    assert "it is not one of this journal's log" in find(tmp_path, written, folder="rekeyed")
    shutil.rmtree(tmp_path / "rekeyed")


async def test_a_known_checkpoint_that_is_none_is_refused(written, tmp_path, capsys):
    (tmp_path / "checkpoint").write_bytes(b"nothing")
    data = f"--data-dir={tmp_path / 'data'}"
    assert main(["verify", data, f"--checkpoint={tmp_path / 'checkpoint'}"]) == 2
    assert "--checkpoint: the note has no signatures" in capsys.readouterr().err
    assert main(["verify", data, f"--checkpoint={tmp_path / 'missing'}"]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


async def test_a_signed_generation_that_the_log_leaves_out_is_found(written, tmp_path):
    change(
        tmp_path,
        "DELETE FROM tree_leaves WHERE number = 299",
        "INSERT INTO tree_leaves SELECT 299, zeroblob(32), 1, max(position) + 50 FROM tree_leaves",
    )
    found = find(tmp_path)
    assert "the statement of the generation that ends here is not in the log" in found
