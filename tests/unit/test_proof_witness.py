"""Witnesses: ours cosigns logs that only grow, and the log has its checkpoints cosigned by it."""

import asyncio
import base64
import logging

import pytest
from aiohttp import ClientSession, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transparency import generate, make_options, open_log, run_witness
from waiting import wait_until

from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.merkle_tree import EMPTY_ROOT, compute_root, hash_leaf
from whence.proof.notes import (
    COSIGNATURE,
    NoteError,
    NoteSigner,
    Signature,
    SignedNote,
    VerifierKey,
    parse_signatures,
)
from whence_server.cli import main
from whence_server.config.transparency import parse_witness
from whence_server.domain.errors import CheckpointPendingError, ConfigurationError
from whence_server.proof.log.keys import load_key, make_key
from whence_server.proof.log.tree import TreeReader
from whence_server.proof.log.witnesses import (
    OvertakenError,
    WitnessClient,
    WitnessError,
    format_request,
)
from whence_server.proof.log.witnesses import Witness as WitnessPlace
from whence_server.proof.witness import command as witness_command
from whence_server.proof.witness import server as witness_server
from whence_server.proof.witness.memory import WitnessMemory
from whence_server.proof.witness.server import RateLimit, WitnessServer
from whence_server.proof.witness.witness import Witness

LOG = NoteSigner("example.com/log", Ed25519PrivateKey.from_private_bytes(b"l" * 32))
OTHER = NoteSigner("example.com/other", Ed25519PrivateKey.from_private_bytes(b"o" * 32))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
OURS = NoteSigner("example.com/w", Ed25519PrivateKey.from_private_bytes(b"w" * 32), COSIGNATURE)


def make_tree(size: int, salt: bytes = b"") -> TreeReader:
    hashes = [hash_leaf(salt + bytes([it])) for it in range(size)]
    return TreeReader(lambda _level, _number, width: hashes[:width], size)


def make_request(tree: TreeReader, old_size: int, signer: NoteSigner = LOG) -> bytes:
    text = Checkpoint(signer.key.name, tree.size, tree.compute_root()).format()
    note = SignedNote(text, (signer.sign(text),))
    return format_request(old_size, tree.prove_consistency(min(old_size, tree.size)), note)


@pytest.fixture
def witness(tmp_path):
    memory = WitnessMemory(tmp_path / "witness.db", [LOG.key.name, OTHER.key.name])
    logs = {it.key.name: [it.key] for it in (LOG, OTHER)}
    yield Witness(OURS, logs, memory, lambda: 1_700_000_000.0)
    memory.close()


def check(answer, size):
    assert answer.status == 200, answer
    (signature,) = parse_signatures(answer.body)
    text = Checkpoint("example.com/log", size, make_tree(size).compute_root()).format()
    assert OURS.key.verify(text, signature) == 1_700_000_000


def test_growth_is_cosigned_and_remembered_over_a_restart(witness, tmp_path):
    check(witness.answer(make_request(make_tree(3), 0)), 3)
    check(witness.answer(make_request(make_tree(3), 3)), 3)
    check(witness.answer(make_request(make_tree(9), 3)), 9)
    memory = WitnessMemory(tmp_path / "witness.db", [LOG.key.name])
    again = Witness(OURS, {LOG.key.name: [LOG.key]}, memory, lambda: 1_700_000_000.0)
    answer = again.answer(make_request(make_tree(10), 3))
    assert (answer.status, answer.body, answer.content_type) == (409, "9\n", "text/x.tlog.size")
    check(again.answer(make_request(make_tree(10), 9)), 10)
    memory.close()
    # Another process has moved on: the first one answers from what is on disk.
    assert witness.answer(make_request(make_tree(11), 9)).body == "10\n"


def test_a_rewritten_or_shortened_log_is_refused(witness):
    check(witness.answer(make_request(make_tree(5), 0)), 5)
    rewritten = make_tree(8, b"x")
    assert witness.answer(make_request(rewritten, 5)).status == 422
    assert witness.answer(make_request(make_tree(4), 4)).body == "5\n"
    assert witness.answer(make_request(make_tree(4), 5)).status == 400
    assert witness.answer(make_request(make_tree(5, b"x"), 5)).status == 409
    check(witness.answer(make_request(make_tree(8), 5)), 8)


def test_logs_are_apart_and_strangers_are_refused(witness):
    check(witness.answer(make_request(make_tree(5), 0)), 5)
    assert witness.answer(make_request(make_tree(2, b"x"), 0, OTHER)).status == 200
    stranger = NoteSigner("example.com/none", Ed25519PrivateKey.generate())
    assert witness.answer(make_request(make_tree(5), 5, stranger)).status == 404
    impostor = NoteSigner("example.com/log", Ed25519PrivateKey.generate())
    assert witness.answer(make_request(make_tree(6), 5, impostor)).status == 403
    wrong = make_request(make_tree(6), 5).replace(b"\n6\n", b"\n7\n")
    assert witness.answer(wrong).status == 403


NOTE = make_request(make_tree(2), 0).partition(b"\n\n")[2]
HASH = base64.b64encode(bytes(32)) + b"\n"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n\n",
        b"old 0\n" + NOTE,
        b"old -1\n\n" + NOTE,
        b"old 00\n\n" + NOTE,
        b"new 0\n\n" + NOTE,
        b"old 0\nAAAA\n\n" + NOTE,
        b"old 0\n!\n\n" + NOTE,
        b"old 0\n" + 64 * HASH + b"\n" + NOTE,
        b"old 0\n\n" + NOTE + b"x" * (64 << 10),
        b"\xff\n\n" + NOTE,
    ],
)
def test_malformed_requests_are_refused(witness, body):
    assert witness.answer(body).status == 400


def test_an_address_that_asks_too_often_waits():
    now = [0.0]
    limit = RateLimit(2.0, 4, lambda: now[0])
    assert [limit.take("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert limit.take("b")
    now[0] = 1.0
    assert [limit.take("a") for _ in range(3)] == [True, True, False]
    for number in range(10_000):
        limit.take(str(number))
    assert len(limit._buckets) == 4_096


async def test_strangers_do_not_use_up_what_a_log_may_ask(witness):
    server = WitnessServer(witness, "127.0.0.1", 0, RateLimit(0.001, 2))
    await server.start()
    url = f"{server.url}/add-checkpoint"
    stranger = make_request(make_tree(3), 0, NoteSigner("example.com/none", OTHER_KEY))
    try:
        async with ClientSession() as session:
            statuses = []
            for body in (stranger, b"nothing", stranger, b"nothing"):
                async with session.post(url, data=body) as answer:
                    statuses.append(answer.status)
            assert statuses == [404, 400, 429, 429]
            async with session.post(url, data=make_request(make_tree(3), 0)) as answer:
                assert answer.status == 200
    finally:
        await server.close()


async def test_a_request_that_does_not_end_is_ended(witness, monkeypatch):
    monkeypatch.setattr(witness_server, "_BODY_S", 0.2)
    server = WitnessServer(witness, "127.0.0.1", 0, RateLimit(1, 1))
    await server.start()
    port = int(server.url.rpartition(":")[2])
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408")
        writer.close()
    finally:
        await server.close()


def run_command(folder, *flags, key="key.pem", db="w.db"):
    """Run the command up to the point where it would listen; return its exit status."""
    return main(
        [
            *("witness", "--name", "example.com/w", "--log", str(LOG.key)),
            *("--key", str(folder / key), "--db", str(folder / db), *flags),
        ]
    )


def test_a_key_without_its_memory_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(witness_command.asyncio, "run", lambda coroutine: coroutine.close() or 0)
    assert run_command(tmp_path) == 0
    assert run_command(tmp_path) == 0
    assert run_command(tmp_path, db="other.db") == 2
    assert "has been used: with an empty memory" in capsys.readouterr().err
    assert not (tmp_path / "other.db").exists()
    assert run_command(tmp_path, "--new-memory", db="other.db") == 0
    assert run_command(tmp_path, key="other.pem") == 2
    assert "is the memory of the witness example.com/w+" in capsys.readouterr().err
    assert not (tmp_path / "other.pem").exists()
    make_key("--key", tmp_path / "third.pem")
    assert run_command(tmp_path, key="third.pem") == 2
    assert "give the two that belong together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown"), [("https://w.example/", "https://w.example="), ("", "http://127.0.0.1:")]
)
async def test_the_printed_line_names_the_url_that_servers_use(witness, capsys, url, shown):
    server = WitnessServer(witness, "127.0.0.1", 0, RateLimit(1, 1))
    serving = asyncio.create_task(witness_command._serve(server, OURS, url))
    printed: list[str] = []
    await wait_until(lambda: printed.append(capsys.readouterr().out) or any(printed), 60)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    line = "".join(printed)
    assert line.startswith(shown)
    assert line.endswith(f"={OURS.key}\n")


def test_a_key_is_made_once_and_other_kinds_are_refused(tmp_path):
    path = tmp_path / "key.pem"
    key = make_key("--key", path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_key("--key", path).private_bytes_raw() == key.private_bytes_raw()
    assert load_key("--key", path).private_bytes_raw() == key.private_bytes_raw()
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others can read it"):
        load_key("--key", path)
    path.chmod(0o600)
    path.write_text("no key")
    with pytest.raises(Exception, match=r"--key .*key\.pem cannot be read"):
        load_key("--key", path)


@pytest.mark.parametrize(
    "text", ["", "http://x", f"http://x={LOG.key}", f"ftp://x={OURS.key}", "http://x=a+b+c"]
)
def test_what_is_no_witness_is_refused(text):
    with pytest.raises(ValueError, match=r"expected|key"):
        parse_witness(text)
    assert parse_witness(f"https://x.example/w={OURS.key}") == ("https://x.example/w", OURS.key)


# ---- the log's side ----


async def test_a_checkpoint_is_published_once_its_witness_has_cosigned_it(tmp_path, caplog):
    options = make_options(tmp_path, origin="example.com/log")
    async with open_log(tmp_path, options) as (_, log):
        key = VerifierKey.parse(log.verifier_key)
    async with run_witness(tmp_path, key) as (url, witness_key):
        port = int(url.rpartition(":")[2])
        witnesses = (WitnessPlace(url, witness_key),)
    asked = make_options(tmp_path, witnesses=witnesses, quorum=1)
    with caplog.at_level(logging.INFO):
        async with open_log(tmp_path, asked) as (journal, log):
            # The witness is away: generations go on, and nothing is published.
            generate(journal, 1, 2, 3)
            await journal.flush()
            assert await log.flush(30)
            await wait_until(lambda: log.stats.failures["example.com/w"] > 0)
            assert log.stats.delay_s > 0
            with pytest.raises(CheckpointPendingError):
                await log.read_checkpoint()
            async with run_witness(tmp_path, key, port=port):
                await wait_until(lambda: log.stats.size == 3, 60)
                assert log.stats.delay_s == 0
                generate(journal, 4)
                await journal.flush()
                await wait_until(lambda: log.stats.size == 4, 60)
            raw = await log.read_checkpoint()
            assert verify_checkpoint(raw, key, [witness_key], 1).checkpoint.size == 4
    assert "witness example.com/w has not cosigned" in caplog.text
    assert "cosigns again" in caplog.text


async def test_a_witness_finds_that_the_whole_store_was_rewritten(tmp_path, caplog):
    """The operator makes everything anew, consistently, with the same keys."""
    options = make_options(tmp_path, origin="example.com/log")
    async with open_log(tmp_path, options) as (_, log):
        key = VerifierKey.parse(log.verifier_key)
    async with run_witness(tmp_path, key) as (url, witness_key):
        asked = make_options(
            tmp_path,
            origin="example.com/log",
            witnesses=(WitnessPlace(url, witness_key),),
            quorum=1,
        )
        async with open_log(tmp_path, asked) as (journal, log):
            generate(journal, 1, 2, 3, 4)
            await journal.flush()
            await wait_until(lambda: log.stats.size == 4, 60)
        for folder, numbers in (("changed", (1, 2, 7, 4, 5)), ("cut", (1, 2))):
            with caplog.at_level(logging.CRITICAL):
                async with open_log(tmp_path, asked, tmp_path / folder) as (journal, log):
                    generate(journal, *numbers)
                    await journal.flush()
                    await wait_until(lambda: "has not cosigned" in caplog.text, 60)
                    with pytest.raises(CheckpointPendingError):
                        await log.read_checkpoint()
            found = "were changed or cut off" if folder == "changed" else "were cut off"
            assert found in caplog.text
            caplog.clear()


async def answer_once(status, body):
    async def answer(_request):
        return web.Response(status=status, body=body)

    application = web.Application()
    application.router.add_post("/add-checkpoint", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


TEXT = Checkpoint("example.com/log", 2, compute_root([EMPTY_ROOT])).format()


async def read_size():
    return 2


FORGED = OURS.sign(TEXT.replace("2", "3"), 1).format().encode() + b"\n"
STRANGE = (
    NoteSigner("example.com/w", Ed25519PrivateKey.generate(), COSIGNATURE).sign(TEXT, 1).format()
)
PLAIN_SIGNATURE = Ed25519PrivateKey.from_private_bytes(b"w" * 32).sign(TEXT.encode())
PLAIN = Signature("example.com/w", OURS.key.key_id, PLAIN_SIGNATURE).format().encode() + b"\n"
RIGHT = OURS.sign(TEXT, 1).format().encode() + b"\n"


@pytest.mark.parametrize(
    ("status", "body", "what", "contradicts"),
    [
        (200, FORGED, "signature of example.com/w is wrong", False),
        (200, STRANGE.encode() + b"\n", "no signature of the key", False),
        (200, RIGHT * 2, "2 signatures", False),
        (200, PLAIN, "64 bytes, expected 72", False),
        (200, b"", "no line break", False),
        (200, b"\xff\n", "refused", False),
        (200, b"x" * 70_000, "more than", False),
        (409, b"5\n", "were cut off", True),
        (409, b"0\n", "another state", True),
        (409, b"many\n", "no size", False),
        (422, b"no\n", "does not continue", True),
        (403, b"go away", "HTTP 403: 'go away'", False),
        (302, b"", "HTTP 302", False),
    ],
)
async def test_wrong_answers_of_a_witness_are_refused(status, body, what, contradicts):
    runner, url = await answer_once(status, body)
    note = SignedNote(TEXT, (LOG.sign(TEXT),))

    async def prove(_old_size):
        return []

    try:
        async with ClientSession() as session:
            client = WitnessClient(WitnessPlace(url, OURS.key), session)
            with pytest.raises(WitnessError, match=what) as caught:
                await client.cosign(note, 2, prove, read_size)
        assert caught.value.is_contradiction == contradicts
        assert client.waits
    finally:
        await runner.cleanup()


async def test_a_witness_that_knows_a_newer_state_of_the_log_does_not_contradict():
    """Another server of the log was faster."""
    runner, url = await answer_once(409, b"5\n")

    async def prove(_old_size):
        return []

    async def read_present():
        return 5

    try:
        async with ClientSession() as session:
            client = WitnessClient(WitnessPlace(url, OURS.key), session)
            with pytest.raises(OvertakenError):
                await client.cosign(SignedNote(TEXT, (LOG.sign(TEXT),)), 2, prove, read_present)
        assert not client.waits
    finally:
        await runner.cleanup()


async def test_a_right_answer_of_a_witness_is_taken():
    runner, url = await answer_once(200, RIGHT)
    note = SignedNote(TEXT, (LOG.sign(TEXT),))
    try:
        async with ClientSession() as session:
            client = WitnessClient(WitnessPlace(url, OURS.key), session)

            async def prove(_old_size):
                return []

            signature = await client.cosign(note, 2, prove, read_size)
        assert OURS.key.verify(TEXT, signature) == 1
        with pytest.raises(NoteError):
            OURS.key.verify(TEXT + "x", signature)
    finally:
        await runner.cleanup()
