"""One transparency log that several servers on a PostgreSQL database grow."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transparency import generate, make_options
from waiting import wait_until

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.merkle import verify_inclusion
from whence.proof.merkle_tree import hash_leaf
from whence.proof.notes import COSIGNATURE, NoteSigner, VerifierKey
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import CheckpointPendingError
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.postgres.verify import verify_database
from whence_server.proof.log import tables
from whence_server.proof.log.log import TransparencyLog
from whence_server.proof.log.sequencer import SequencerOptions
from whence_server.proof.log.statements import find_digest
from whence_server.proof.log.witnesses import Witness as WitnessPlace
from whence_server.proof.log.witnesses import WitnessClient
from whence_server.proof.witness.memory import WitnessMemory
from whence_server.proof.witness.witness import Witness


@pytest.fixture
def url(postgres, tmp_path):
    return postgres.make_journal_url(str(tmp_path))


@asynccontextmanager
async def open_server(url, folder, options):
    """Open a server's journal and the log; yield both."""
    journal = await Journal.open(folder, open_store=lambda *_: PostgresStore(url, 60.0))
    try:
        log = await TransparencyLog.open(journal, options)
        await log.start()
        try:
            yield journal, log
        finally:
            await log.close()
    finally:
        await journal.close()


async def read_digests(journal):
    entries = await journal.read_committed(0, 10_000)
    return [find_digest(it) for it in entries if it.kind is EntryKind.FINISHED]


async def test_servers_grow_one_log_with_every_generation_once(url, tmp_path):
    options = make_options(tmp_path)
    # A server with a key of its own grows the log, and signs nothing.
    elsewhere = make_options(tmp_path / "b")
    (tmp_path / "b").mkdir(mode=0o700)
    async with open_server(url, tmp_path / "a", options) as (a, log_a):
        async with open_server(url, tmp_path / "b", elsewhere) as (b, log_b):
            assert log_a.verifier_key == log_b.verifier_key
            for number in range(1, 61, 2):
                generate(a, number)
                generate(b, number + 1)
                await asyncio.gather(a.flush(), b.flush())
            await wait_until(lambda: log_a.stats.size == 60, 60)
            key = VerifierKey.parse(log_a.verifier_key)
            for journal in (a, b):
                for digest in await read_digests(journal):
                    proof = await log_b.prove_inclusion(digest)
                    root = verify_checkpoint(proof.checkpoint, key).checkpoint.root
                    leaf = hash_leaf(digest)
                    found = proof.leaf_index, proof.size, proof.path
                    assert verify_inclusion(leaf, *found, root)
            await log_b.close()
            generate(b, 100, 101)
        # The server has ended before it appended its last two: another one takes its log over.
        await wait_until(lambda: log_a.stats.size >= 60, 60)
        async with asyncio.timeout(60):
            while (taken := await a.take_over()) is None:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.05)
        follower = log_a.make_follower(taken)
        follower.start()
        assert await follower.flush(60)
        await follower.close()
        await taken.close()
        await wait_until(lambda: log_a.stats.size == 62, 60)
        state = await a.tree.read(tables.read_state)
        assert state.size == 62
        note = await log_a.read_checkpoint()
    report = verify_database(url, known=[note])
    assert report.findings == []
    assert report.num_generations == 62


async def test_two_servers_that_ask_one_witness_do_not_accuse_their_operator(
    url, tmp_path, monkeypatch, caplog
):
    async with open_server(url, tmp_path / "a", make_options(tmp_path)) as (_, log):
        key = VerifierKey.parse(log.verifier_key)
    signer = NoteSigner("example.com/w", Ed25519PrivateKey.generate(), COSIGNATURE)
    memory = WitnessMemory(tmp_path / "w.db", [key.name])
    witness = Witness(signer, {key.name: [key]}, memory)

    async def post(_client, body):
        answer = witness.answer(body)
        await asyncio.sleep(0.02)  # the way back, on which the other server asks
        return answer.status, answer.body.encode()

    monkeypatch.setattr(WitnessClient, "_post", post)
    places = (WitnessPlace("http://w", signer.key),)
    pace = SequencerOptions(interval_s=0.01, max_entries=100)
    options = make_options(tmp_path, witnesses=places, quorum=1, pace=pace)
    async with (
        open_server(url, tmp_path / "a", options) as (a, log_a),
        open_server(url, tmp_path / "b", options) as (b, _),
    ):
        for number in range(1, 41, 2):
            generate(a, number)
            generate(b, number + 1)
            await asyncio.gather(a.flush(), b.flush())
            await asyncio.sleep(0.02)  # else all are in one checkpoint

        async def read_size():
            try:
                raw = await log_a.read_checkpoint()
            except CheckpointPendingError:
                return 0
            return verify_checkpoint(raw, key, [signer.key], 1).checkpoint.size

        async with asyncio.timeout(60):
            while await read_size() < 40:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.05)
    memory.close()
    assert not [it for it in caplog.records if it.levelno >= logging.CRITICAL]
