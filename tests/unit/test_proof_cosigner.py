"""Cosigning while the log grows, by witnesses that are slow, and beside another server."""

import asyncio
import logging

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transparency import generate, make_options, open_log
from waiting import wait_until

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.notes import COSIGNATURE, NoteSigner, VerifierKey
from whence_server.domain.errors import CheckpointPendingError
from whence_server.journal.tree_tables import SCHEMA
from whence_server.proof.log import tables
from whence_server.proof.log.cosigner import Cosigner
from whence_server.proof.log.witnesses import Witness as WitnessPlace
from whence_server.proof.log.witnesses import WitnessClient
from whence_server.proof.witness.memory import WitnessMemory
from whence_server.proof.witness.witness import Witness

FAST, SLOW = (
    NoteSigner(name, Ed25519PrivateKey.generate(), COSIGNATURE)
    for name in ("example.com/fast", "example.com/slow")
)


class Witnesses:
    """Witnesses without a network; the answers of one can be held up."""

    def __init__(self, folder, key, *signers):
        self.free = {it.key.name: asyncio.Event() for it in signers}
        self.places = tuple(WitnessPlace(f"http://{it.key.name}", it.key) for it in signers)
        self._memories = {
            it.key.name: WitnessMemory(folder / f"{it.key.name[-4:]}.db", [key.name])
            for it in signers
        }
        self._witnesses = {
            it.key.name: Witness(it, {key.name: [key]}, self._memories[it.key.name])
            for it in signers
        }

    async def post(self, client, body):
        name = client.witness.key.name
        answer = self._witnesses[name].answer(body)
        await self.free[name].wait()
        return answer.status, answer.body.encode()

    def close(self):
        for memory in self._memories.values():
            memory.close()


@pytest.fixture
async def key(tmp_path):
    async with open_log(tmp_path, make_options(tmp_path, origin="example.com/log")) as (_, log):
        return VerifierKey.parse(log.verifier_key)


@pytest.fixture
def ask(tmp_path, key, monkeypatch):
    made = []

    def make(*signers):
        made.append(Witnesses(tmp_path, key, *signers))

        async def post(client, body):
            return await made[-1].post(client, body)

        monkeypatch.setattr(WitnessClient, "_post", post)
        return made[-1]

    yield make
    for one in made:
        one.close()


async def test_a_slow_witness_never_makes_the_published_log_smaller(tmp_path, key, ask):
    witnesses = ask(SLOW)
    free = witnesses.free[SLOW.key.name]
    free.set()
    options = make_options(tmp_path, witnesses=witnesses.places, quorum=1)
    async with open_log(tmp_path, options) as (journal, log):
        generate(journal, 1)
        await journal.flush()
        await wait_until(lambda: log.stats.size == 1, 60)
        for number in range(2, 5):
            free.clear()
            before = log.stats.size
            # The second one comes while the witness answers for the first one.
            for more in (2 * number, 2 * number + 1):
                generate(journal, more)
                await journal.flush()
                assert await log.flush(30)
                raw = await log.read_checkpoint()
                assert verify_checkpoint(raw, key, [SLOW.key], 1).checkpoint.size >= before
            free.set()
            await wait_until(lambda size=before + 2: log.stats.size == size, 60)


async def test_a_witness_that_does_not_answer_does_not_hold_up_a_quorum(tmp_path, key, ask):
    witnesses = ask(SLOW, FAST)
    witnesses.free[FAST.key.name].set()
    options = make_options(tmp_path, witnesses=witnesses.places, quorum=1)
    async with open_log(tmp_path, options) as (journal, log):
        for number in range(1, 4):
            generate(journal, number)
            await journal.flush()
            await wait_until(lambda size=number: log.stats.size == size, 60)
        raw = await log.read_checkpoint()
        assert verify_checkpoint(raw, key, [FAST.key], 1).checkpoint.size == 3
        assert not any(log.stats.failures.values())
        # The other one is added when it comes.
        witnesses.free[SLOW.key.name].set()

        async def read_signers():
            raw = await log.read_checkpoint()
            return verify_checkpoint(raw, key, [FAST.key, SLOW.key]).witnesses

        async with asyncio.timeout(60):
            while len(await read_signers()) < 2:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.05)


async def test_two_witnesses_are_needed_for_a_quorum_of_two(tmp_path, key, ask):
    witnesses = ask(SLOW, FAST)
    witnesses.free[FAST.key.name].set()
    options = make_options(tmp_path, witnesses=witnesses.places, quorum=2)
    async with open_log(tmp_path, options) as (journal, log):
        generate(journal, 1)
        await journal.flush()
        assert await log.flush(30)
        with pytest.raises(CheckpointPendingError):
            await log.read_checkpoint()
        witnesses.free[SLOW.key.name].set()
        await wait_until(lambda: log.stats.size == 1, 60)
        raw = await log.read_checkpoint()
        assert len(verify_checkpoint(raw, key, [FAST.key, SLOW.key], 2).witnesses) == 2


async def test_a_checkpoint_that_another_server_overtook_is_no_contradiction(tmp_path, ask, caplog):
    """Another server of the log has a newer checkpoint cosigned, which this one sees later."""
    witnesses = ask(FAST)
    witnesses.free[FAST.key.name].set()
    options = make_options(tmp_path, witnesses=witnesses.places, quorum=1)
    failures = {FAST.key.name: 0}
    with caplog.at_level(logging.INFO):
        async with open_log(tmp_path, options) as (journal, log):
            stored = []
            for number in (1, 2):
                generate(journal, number)
                await journal.flush()
                await wait_until(lambda size=number: log.stats.size == size, 60)
                stored.append(
                    await journal.tree.read(
                        lambda it: tables.find_newest_checkpoint(it, published=True)
                    )
                )
            cosigner = Cosigner(journal.tree, witnesses.places, 1, failures, lambda: None)
            cosigner.start()
            first, second = (it._replace(published=None) for it in stored)
            assert not await cosigner.cosign(first)
            assert await cosigner.cosign(second)
            await cosigner.close()
            newest = await log.prove_consistency(1)
            assert newest.size == 2
    assert failures == {FAST.key.name: 0}
    assert "has not cosigned" not in caplog.text


def test_what_is_published_never_gets_smaller():
    connection = apsw.Connection(":memory:")
    connection.execute(SCHEMA)
    tables.begin_tree(connection, "example.com/log", "")

    def find():
        return tables.find_newest_checkpoint(connection, published=True)

    tables.add_checkpoint(connection, 10, b"n10", None)
    tables.publish_checkpoint(connection, 10, b"p10")
    tables.add_checkpoint(connection, 11, b"n11", None)
    tables.add_checkpoint(connection, 12, b"n12", None)
    assert find() == (10, b"n10", b"p10")
    tables.publish_checkpoint(connection, 11, b"p11")
    assert find() == (11, b"p11", b"p11")
    assert tables.find_newest_checkpoint(connection, published=False) == (12, b"n12", None)
    tables.publish_checkpoint(connection, 10, b"p10")
    assert find() == (11, b"p11", b"p11")
    connection.close()
