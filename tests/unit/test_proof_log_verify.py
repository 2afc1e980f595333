"""`whence-server verify` over a transparency log that its operator has changed."""

import shutil

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journal_records import FIRST, SECOND, begin
from sealed_journals import make_options as make_sealing
from sealed_journals import open_keys
from transparency import end_signed, generate, make_options

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.merkle_tree import compute_root, hash_leaf
from whence.proof.notes import NoteSigner, VerifierKey
from whence.v1 import generation_pb2
from whence_server.cli import main
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import ConfigurationError
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex
from whence_server.journal.tree_verify import read_checkpoints
from whence_server.journal.verify import verify_journal
from whence_server.proof.log.keys import load_key
from whence_server.proof.log.log import TransparencyLog
from whence_server.proof.log.sequencer import sign_state
from whence_server.proof.log.statements import find_digest


async def fill(tmp_path, folder, texts, shift=0, sealing=None):
    """Write a journal with its log; return the published checkpoint.

    The statements are about entries of other numbers if there is a shift.
    """
    journal = await Journal.open(tmp_path / folder, sealing=sealing)
    log = await TransparencyLog.open(journal, make_options(tmp_path, origin="example.com/log"))
    await log.start()
    for number, text in enumerate(texts, 1):
        generation_id = f"00000000-0000-4000-9000-{number:012d}"
        begin(journal, generation_id, number + shift)
        end_signed(journal, generation_id, number, text)
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
    digests = await read_digests(tmp_path / "data")
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


async def read_digests(folder):
    journal = await Journal.open(folder)
    entries = await journal.read_committed(0, 10_000)
    await journal.close()
    return [find_digest(it) for it in entries if it.kind is EntryKind.FINISHED]


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


async def test_changed_entries_under_a_kept_statement_are_found(tmp_path):
    """The operator changes prompt and tokens, makes the chain anew, and keeps the statements."""
    known = await fill(tmp_path, "kept", ["one", "two"])
    assert find(tmp_path, known, folder="kept") == ""
    known = await fill(tmp_path, "changed", ["one", "two"], shift=1_000)
    found = find(tmp_path, known, folder="changed")
    for number in (1, 2):
        name = f"statements 00000000-0000-4000-9000-{number:012d}"
        assert f"{name}: its entries on record are not those of its signed statement" in found
    assert find(tmp_path, folder="changed") == found


async def test_a_statement_about_another_generation_and_another_end_is_found(tmp_path):
    journal = await Journal.open(tmp_path / "data")
    begin(journal, FIRST, 1)
    end_signed(journal, FIRST, 1)
    await journal.flush()
    (entry,) = await journal.read(FIRST, kinds=(EntryKind.FINISHED,))
    begin(journal, SECOND, 1)
    changed = generation_pb2.GenerationFinished.FromString(entry.payload)
    changed.num_generated_tokens = 4
    index = FinishIndex(FinishReason.LENGTH, 4, "")
    journal.finish(SECOND, changed.SerializeToString(), index)
    await journal.close()
    found = find(tmp_path)
    assert f"statements {SECOND}: its signed statement is about generation {FIRST}" in found
    assert "its end on record differs from its signed statement's results" in found
    assert f"statements {FIRST}" not in found


async def test_statements_of_an_encrypted_journal_are_compared_with_its_keys(tmp_path):
    sealing = make_sealing(tmp_path / "keys", tmp_path / "keys.db")

    def look(folder, known):
        keys = open_keys(tmp_path, tmp_path / "keys")
        try:
            report = verify_journal(tmp_path / folder, keys, [known])
        finally:
            keys.close()
        return "\n".join(map(str, report.findings))

    known = await fill(tmp_path, "data", ["one", "two", "three"], sealing=sealing)
    assert look("data", known) == ""
    change(tmp_path, "UPDATE tree_leaves SET digest = zeroblob(32) WHERE number = 0")
    assert "the transparency log has another statement at its place" in look("data", known)
    assert "another statement" not in find(tmp_path, known)
    change(tmp_path, "DELETE FROM tree_leaves WHERE number = 0")
    assert "its signed statement is not in the transparency log" in look("data", known)
    (tmp_path / "keys.db").unlink()
    known = await fill(tmp_path, "changed", ["one"], shift=1_000, sealing=sealing)
    assert "its entries on record are not those of its signed" in look("changed", known)


async def test_signed_generations_after_the_logs_last_entry_are_counted(tmp_path):
    await fill(tmp_path, "data", ["one"])
    assert verify_journal(tmp_path / "data").notes == []
    journal = await Journal.open(tmp_path / "data")
    generate(journal, 2, 3, 4)
    await journal.close()
    report = verify_journal(tmp_path / "data")
    assert report.intact
    assert "3 signed generations are not in the transparency log" in "\n".join(report.notes)


async def test_a_log_that_lost_its_name_is_found(written, tmp_path):
    change(tmp_path, "DELETE FROM tree")
    found = find(tmp_path, written)
    assert "tree_leaves: it has 300 rows, and the table tree" in found
    assert "tree_nodes: it has 1 rows" in found
    assert "tree_checkpoints: it has 1 rows" in found
    assert "the journal has no log, and checkpoint 300 of one is known" in found


async def test_a_log_of_another_name_and_a_second_log_are_found(written, tmp_path):
    change(tmp_path, "UPDATE tree SET origin = CAST('another' AS BLOB)")
    assert "tree another origin" in find(tmp_path)
    change(tmp_path, "INSERT INTO tree SELECT 2, origin, verifier_key, size FROM tree")
    assert "it has 2 rows, and a journal one log" in find(tmp_path)


def test_a_journal_without_entries_contradicts_a_known_checkpoint(tmp_path):
    signer = NoteSigner("example.com/log", Ed25519PrivateKey.generate())
    known = sign_state(signer, 300, bytes(32))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal.db").touch()
    assert verify_journal(tmp_path / "data").nothing
    assert "checkpoint 300 of one is known" in find(tmp_path, known)
    with pytest.raises(ConfigurationError, match="--checkpoint: the note has no signatures"):
        find(tmp_path, b"nothing")


def test_a_bundle_with_half_a_surrogate_pair_is_refused(tmp_path):
    bundle = tmp_path / "bundle.json"
    head = '{"mediaType":"application/vnd.whence.bundle+json;version=1","envelope":"","keys":[],'
    bundle.write_text(head + '"leaves":[],"log":{"checkpoint":"\\ud800"}}')
    with pytest.raises(ConfigurationError, match=r"--checkpoint .*bundle\.json"):
        read_checkpoints([bundle])
