"""Identity of an upstream that is started anew between two questions."""

import asyncio
from dataclasses import replace

import pytest
from fake_upstream import serving
from scripted_upstream import TOLD
from waiting import wait_until

from whence_server.domain.errors import UpstreamAwayError, UpstreamModelError, WhenceError
from whence_server.engines.upstream.identity import Identity, IdentityWatch
from whence_server.engines.upstream.wire.address import parse_address
from whence_server.engines.upstream.wire.api_key import ApiKey
from whence_server.engines.upstream.wire.connection import Connection, WireLimits

KNOWN = Identity(TOLD, "1000.5")
NOW = 0.0
PATIENT_S = 30.0


class Asked:
    """An upstream that is asked; it answers when `gate` is set."""

    def __init__(self) -> None:
        self.answer: Identity | WhenceError = KNOWN
        self.num_questions = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.watch = IdentityWatch(self._ask, "the upstream at http://u")

    async def _ask(self) -> Identity:
        self.num_questions += 1
        await self.gate.wait()
        if isinstance(self.answer, WhenceError):
            raise self.answer
        return self.answer


@pytest.fixture
def asked() -> Asked:
    made = Asked()
    made.watch.settle(KNOWN, 0)
    return made


async def test_only_a_new_connection_raises_the_question(asked: Asked) -> None:
    await asked.watch.confirm(NOW)
    assert asked.num_questions == 0
    asked.watch.note_opened()
    await asked.watch.confirm(PATIENT_S)
    await asked.watch.confirm(PATIENT_S)
    assert asked.num_questions == 1


async def test_a_connection_that_is_opened_during_a_question_needs_another_one(
    asked: Asked,
) -> None:
    asked.gate.clear()
    asked.watch.note_opened()
    await wait_until(lambda: asked.num_questions == 1)
    asked.watch.note_opened()
    asked.watch.note_opened()
    asked.gate.set()
    await asked.watch.confirm(PATIENT_S)
    assert asked.num_questions == 2


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (Identity(replace(TOLD, model="other"), "1000.5"), "its model was 'smol' and is 'other'"),
        (UpstreamModelError("it does not serve 'smol'"), "it does not serve 'smol'"),
    ],
)
async def test_another_one_is_refused_until_it_is_described_anew(
    asked: Asked, now: Identity | WhenceError, told: str
) -> None:
    asked.answer = now
    asked.watch.note_opened()
    with pytest.raises(UpstreamModelError, match=told):
        await asked.watch.confirm(PATIENT_S)
    with pytest.raises(UpstreamModelError, match=told):
        asked.watch.require()
    assert not await asked.watch.is_same()
    asked.watch.settle(KNOWN, asked.watch.num_opened)
    asked.watch.require()


async def test_another_process_is_a_doubt_until_it_was_described(asked: Asked) -> None:
    doubts: list[None] = []
    asked.watch.on_doubt = lambda: doubts.append(None)
    asked.answer = other = Identity(TOLD, "2000.5")
    asked.watch.note_opened()
    # The generation goes on, and its end waits for the answer.
    await asked.watch.confirm(PATIENT_S)
    assert len(doubts) == 1
    assert not await asked.watch.is_same()
    waiting = asyncio.create_task(asked.watch.wait_settled(PATIENT_S))
    await asyncio.sleep(0)
    assert not waiting.done()
    asked.watch.settle(other, asked.watch.num_opened)
    await waiting
    # Both may be behind one address.
    for identity in (KNOWN, other):
        asked.answer = identity
        assert await asked.watch.is_same()
    assert len(doubts) == 2


async def test_without_an_answer_a_generation_goes_on_and_the_question_stays_open(
    asked: Asked,
) -> None:
    asked.answer = UpstreamAwayError("it does not answer")
    asked.watch.note_opened()
    await asked.watch.confirm(PATIENT_S)
    assert await asked.watch.is_same()
    asked.answer = Identity(replace(TOLD, version="2"), "1000.5")
    with pytest.raises(UpstreamModelError):
        await asked.watch.confirm(PATIENT_S)
    await asked.watch.close()


async def test_a_pool_tells_of_each_connection_that_it_opens() -> None:
    async with serving() as upstream:
        upstream.answer_json("GET", "/version", {"version": "1"})
        connection = Connection(parse_address(upstream.url), ApiKey(None), WireLimits())
        twin = connection.make_twin()
        opened: list[None] = []
        connection.on_open = lambda: opened.append(None)
        for _ in range(3):
            await connection.get_object("/version")
            await twin.get_object("/version")
        assert len(opened) == 1
        await connection.close()
        await twin.close()
