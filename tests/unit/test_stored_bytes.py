"""Bytes on record of each caller, and the limit on them."""

from pathlib import Path

import pytest
from dying_engine import DyingEngine, request, service
from journal_cases import FINISH
from journal_records import started

from whence.v1.generation_pb2 import GenerationFinished
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import StoredBytesError
from whence_server.domain.limits import CallerLimits
from whence_server.journal.derive import derive_started_index
from whence_server.journal.journal import Journal
from whence_server.journal.readers import Readers
from whence_server.journal.store import Owned
from whence_server.journal.stored_bytes import StoredBytes

FINISHED = GenerationFinished(finish_reason=FINISH.finish_reason.value).SerializeToString()


def name(number: int) -> str:
    return f"00000000-0000-4000-8000-00000000000{number}"


def put(journal: Journal, number: int, owner: str) -> int:
    """Put a generation on record; return the bytes of its entries."""
    message = started(name(number), number)
    message.owner = owner
    payload = message.SerializeToString()
    journal.create(derive_started_index(payload), payload)
    journal.append(name(number), EntryKind.STEP, b"\x08\x01" * 500)
    journal.finish(name(number), FINISHED, FINISH)
    return len(payload) + 1_000 + len(FINISHED)


async def measure(journal: Journal, owner: str) -> tuple[int, str]:
    """Return the bytes of an owner, and the error's message."""
    with pytest.raises(StoredBytesError) as caught:
        await journal.stored.check(owner, 1)
    return int(caught.value.metadata["num_bytes"]), caught.value.message


async def test_bytes_are_counted_in_the_store_and_kept_up_to_date(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    expected = put(journal, 1, "alice")
    put(journal, 2, "bob")
    await journal.flush()
    assert (await measure(journal, "alice"))[0] == expected
    expected += put(journal, 3, "alice")
    assert (await measure(journal, "alice"))[0] == expected, "without a count in the store"
    await journal.flush()
    await journal.delete(name(1))
    number, message = await measure(journal, "alice")
    assert number < expected
    assert message.endswith(f"delete generations first, the oldest are {name(3)}")
    await journal.close()
    journal = await Journal.open(tmp_path)
    assert (await measure(journal, "alice"))[0] == number, "after a restart"
    await journal.stored.check("alice", number + 1)
    await journal.stored.check("alice", 0)
    await journal.stored.check("nobody", 1)
    await journal.stored.check("", 1)
    await journal.close()


class CountingStore:
    """Store that counts how often it is asked, and knows one owner."""

    def __init__(self) -> None:
        self.num_bytes, self.num_counts = 100, 0

    def measure_owner(self, owner: str) -> Owned:
        self.num_counts += 1
        return Owned(self.num_bytes, ("one",))


async def test_store_is_asked_again_only_when_needed() -> None:
    now_s, store, readers = 1_000.0, CountingStore(), Readers()

    async def flush() -> None:
        pass

    stored = StoredBytes(store, readers, flush, lambda: now_s)  # type: ignore[arg-type]

    async def is_refused() -> bool:
        try:
            await stored.check("alice", 150)
        except StoredBytesError:
            return True
        return False

    assert not await is_refused()
    stored.note_deletion("alice")
    assert not await is_refused()
    assert store.num_counts == 1, "far from the limit, a deletion changes nothing"
    stored.add("alice", 50)
    stored.add("bob", 5_000)
    assert not await is_refused()
    assert store.num_counts == 2, "at the limit, after a deletion"
    stored.add("alice", 50)
    assert await is_refused()
    assert await is_refused()
    assert store.num_counts == 2, "a caller that tries again and again costs nothing"
    now_s += 5.0
    assert not await is_refused()
    assert store.num_counts == 3, "another process may have deleted"
    now_s += 600.0
    await is_refused()
    assert store.num_counts == 4
    await readers.close()


async def test_caller_at_the_limit_is_refused_until_it_deletes(tmp_path: Path) -> None:
    limits = CallerLimits(max_stored_bytes=1)
    run = await service(tmp_path, DyingEngine(deaths=[]), per_caller=limits)
    first = await run.start(request(1), "alice")
    await run.finished(first)
    with pytest.raises(StoredBytesError, match=first):
        await run.start(request(2), "alice")
    await run.finished(await run.start(request(3), "bob"))
    await run.generations._journal.flush()
    await run.generations._journal.delete(first, "alice")
    await run.finished(await run.start(request(2), "alice"))
    await run.close()
