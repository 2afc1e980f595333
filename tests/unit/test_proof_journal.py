"""Signing of generations in a journal: every kind of end, restarts, takeovers, deletion."""

import json
import logging
from pathlib import Path

import pytest
from bundles import make_finished, make_started
from journal_records import FIRST, RUNNING, SECOND, START_NS, begin, end, started
from sealed_journals import make_options, read_files

from whence.proof.leaves import derive_salt
from whence.proof.verification import Report, verify_bundle
from whence.v1 import generation_pb2 as g
from whence.v1 import step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import GenerationNotFoundError, GenerationUnsignedError
from whence_server.generation.content.forms import Stored
from whence_server.generation.content.held import HeldContents
from whence_server.generation.content.record import ContentRecord
from whence_server.generation.recovery import close_interrupted
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.journal.rows import GenerationIndex
from whence_server.journal.sealing.opening import SealingOptions
from whence_server.proof.signer import PrivateKey, Signer
from whence_server.proof.statements import Statements
from whence_server.rpc.bundles import Disclosure, spell_bundle

SIGNER = PrivateKey.generate()
LEASE_S = 1.0


async def open_journal(directory: Path, sealing: SealingOptions | None = None) -> Journal:
    journal = await Journal.open(directory, sealing=sealing)
    journal.signing.use(Statements(lambda: SIGNER))
    return journal


async def read_finished(journal: Journal, generation_id: str) -> g.GenerationFinished:
    await journal.flush()
    (entry,) = await journal.read(generation_id, kinds=(EntryKind.FINISHED,))
    return g.GenerationFinished.FromString(entry.payload)


async def verify(
    journal: Journal, generation_id: str, disclosure: Disclosure | None = None
) -> Report:
    pieces = spell_bundle(journal, generation_id, [], disclosure or Disclosure())
    data = "".join([piece async for piece in pieces]).encode()
    return verify_bundle(data, [SIGNER.public.pem])


async def test_end_has_a_statement_that_the_entries_on_record_prove(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path)
    try:
        begin(journal, FIRST, 3)
        end(journal, FIRST, 3)
        finished = await read_finished(journal, FIRST)
        assert finished.num_generated_tokens == 3
        assert len(finished.statement.leaf_secret) == 32
        report = await verify(journal, FIRST)
        assert report.verified, report
        assert report.statement is not None
        assert report.statement.generation_id == FIRST
        assert report.statement.num_leaves == 4
        assert report.statement.predicate["closedBy"] == "server"
        audit = await journal.verify()
        assert audit.intact
    finally:
        await journal.close()


@pytest.mark.parametrize(
    ("disclosure", "shown"),
    [
        (Disclosure(), [1, 1, 1, 1]),
        (Disclosure(prompt=False), [0, 1, 1, 1]),
        (Disclosure(text=False), [1, 0, 0, 0]),
        (Disclosure(prompt=False, text=False), [0, 0, 0, 0]),
        (Disclosure(steps=range(1, 2)), [1, 0, 1, 0]),
        (Disclosure(prompt=False, steps=range(9, 9)), [0, 0, 0, 0]),
    ],
)
async def test_bundle_shows_what_was_asked_for(
    tmp_path: Path, disclosure: Disclosure, shown: list[int]
) -> None:
    journal = await open_journal(tmp_path)
    try:
        begin(journal, FIRST, 3)
        end(journal, FIRST, 3)
        await journal.flush()
        pieces = [piece async for piece in spell_bundle(journal, FIRST, [], disclosure)]
        bundle = json.loads("".join(pieces))
        assert ["entry" in leaf for leaf in bundle["leaves"]] == list(map(bool, shown))
        assert ("promptKey" in bundle) == bool(shown[0])
        assert (await verify(journal, FIRST, disclosure)).verified
    finally:
        await journal.close()


@pytest.mark.parametrize(
    ("disclosure", "is_start_shown"),
    [
        (Disclosure(), True),
        (Disclosure(text=False), False),
        (Disclosure(steps=range(1, 2)), False),
        (Disclosure(prompt=False), False),
    ],
)
async def test_hidden_forced_text_is_in_no_entry_of_the_bundle(
    tmp_path: Path, disclosure: Disclosure, is_start_shown: bool
) -> None:
    journal = await open_journal(tmp_path)
    try:
        start = started(FIRST, 3)
        start.effective_decoding.forced.tokens.token_ids[:] = [201, 202, 203]
        index = GenerationIndex(FIRST, start.trace_id, "tiny", START_NS, "", {}, "", 1, "")
        journal.create(index, start.SerializeToString())
        for number, token_id in enumerate((201, 202, 203)):
            step = step_pb2.Step(index=number, token_id=token_id, text=f"t{number}")
            journal.append(FIRST, EntryKind.STEP, step.SerializeToString())
        end(journal, FIRST, 3)
        pieces = [piece async for piece in spell_bundle(journal, FIRST, [], disclosure)]
        bundle = json.loads("".join(pieces))
        shown = [leaf for leaf in bundle["leaves"] if "entry" in leaf]
        starts = [leaf for leaf in shown if leaf["kind"] == "started"]
        assert bool(starts) == ("promptKey" in bundle) == is_start_shown
        if not disclosure.text:
            assert shown == []
        assert (await verify(journal, FIRST, disclosure)).verified
    finally:
        await journal.close()


async def test_bundle_of_large_entries_comes_in_small_pieces(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path)
    try:
        begin(journal, FIRST, 3)
        for number in range(3, 23):
            step = step_pb2.Step(index=number, token_id=1, text="x" * 200_000)
            journal.append(FIRST, EntryKind.STEP, step.SerializeToString())
        end(journal, FIRST, 3)
        hidden = Disclosure(prompt=False)
        pieces = [piece async for piece in spell_bundle(journal, FIRST, [], hidden)]
        assert sum(map(len, pieces)) > 20 * 200_000
        assert max(map(len, pieces)) < 2 << 20
        assert verify_bundle("".join(pieces).encode(), [SIGNER.public.pem]).verified
    finally:
        await journal.close()


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_generation_that_a_crash_interrupted_is_signed_by_the_restart(
    tmp_path: Path, is_sealed: bool
) -> None:
    sealing = make_options(tmp_path / "master") if is_sealed else None
    journal = await open_journal(tmp_path / "data", sealing)
    begin(journal, RUNNING, 3)
    await journal.flush()
    await journal.close()
    journal = await open_journal(tmp_path / "data", sealing)
    try:
        assert await close_interrupted(journal) == 1
        report = await verify(journal, RUNNING)
        assert report.verified, report
        assert report.statement is not None
        assert report.statement.predicate["closedBy"] == "server after a restart"
        assert report.statement.num_leaves == 4
    finally:
        await journal.close()


async def test_generation_of_a_dead_server_is_signed_by_the_one_that_takes_it_over(
    postgres, tmp_path: Path
) -> None:
    url = postgres.make_journal_url(str(tmp_path))
    first = await Journal.open(tmp_path / "a", open_store=lambda *_: PostgresStore(url, LEASE_S))
    second = await Journal.open(tmp_path / "b", open_store=lambda *_: PostgresStore(url, 60.0))
    try:
        second.signing.use(Statements(lambda: SIGNER))
        begin(first, RUNNING, 3)
        await first.flush()
    finally:
        await first.close()
    taken = await second.take_over()
    assert taken is not None
    try:
        await close_interrupted(taken)
        report = await verify(second, RUNNING)
        assert report.verified, report
        assert report.statement is not None
        assert report.statement.predicate["closedBy"] == "another server"
    finally:
        await taken.close()
        await second.close()


async def test_statement_of_an_encrypted_generation_is_encrypted(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path / "data", make_options(tmp_path / "master"))
    begin(journal, FIRST, 3)
    end(journal, FIRST, 3)
    statement = (await read_finished(journal, FIRST)).statement
    assert (await verify(journal, FIRST)).verified
    await journal.close()
    stored = read_files(tmp_path / "data")
    assert statement.leaf_secret not in stored
    assert statement.envelope[:60] not in stored


async def test_deletion_destroys_statement_and_secret_and_leaves_bundles_valid(
    tmp_path: Path,
) -> None:
    journal = await open_journal(tmp_path)
    begin(journal, FIRST, 3)
    end(journal, FIRST, 3)
    statement = (await read_finished(journal, FIRST)).statement
    pieces = [piece async for piece in spell_bundle(journal, FIRST, [], Disclosure())]
    await journal.delete(FIRST)
    with pytest.raises(GenerationNotFoundError):
        await verify(journal, FIRST)
    await journal.close()
    stored = read_files(tmp_path)
    for gone in (statement.leaf_secret, derive_salt(statement.leaf_secret, 1), statement.envelope):
        assert gone not in stored
    assert verify_bundle("".join(pieces).encode(), [SIGNER.public.pem]).verified


async def test_generation_without_a_signer_has_no_statement(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    try:
        begin(journal, FIRST, 3)
        end(journal, FIRST, 3)
        assert not (await read_finished(journal, FIRST)).HasField("statement")
        with pytest.raises(GenerationUnsignedError, match="--signing off"):
            await verify(journal, FIRST)
    finally:
        await journal.close()


async def test_generation_ends_although_it_cannot_be_signed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Signer:
        raise OSError("the key service is away")

    journal = await Journal.open(tmp_path)
    journal.signing.use(Statements(fail))
    try:
        with caplog.at_level(logging.ERROR):
            begin(journal, FIRST, 3)
            end(journal, FIRST, 3)
        assert (await read_finished(journal, FIRST)).num_generated_tokens == 3
        assert "ends without a signed statement" in caplog.text
    finally:
        await journal.close()


async def test_callers_stream_has_the_statement_of_the_record(tmp_path: Path) -> None:
    journal = await open_journal(tmp_path)
    contents = HeldContents()
    try:
        started = make_started()
        started.generation_id = SECOND
        record = ContentRecord(journal, TextlessForm())
        record.create(started.SerializeToString(), contents)
        record.append(SECOND, EntryKind.STEP, b"")
        finished = make_finished(1)
        record.finish(SECOND, finished.SerializeToString(), None)  # type: ignore[arg-type]
        held = contents.find(SECOND)
        assert held is not None
        last = held.read_after(2, 1 << 20)
        assert last is not None
        streamed = g.GenerationFinished.FromString(last[0].payload)
        on_record = await read_finished(journal, SECOND)
        assert streamed.statement == on_record.statement
        assert streamed.sequences[0].text == "a secret text"
        assert on_record.sequences[0].text == ""
        assert (await verify(journal, SECOND)).verified
    finally:
        await journal.close()


class TextlessForm:
    """Stored form without the texts of the end."""

    def take(self, kind: EntryKind, payload: bytes) -> list[Stored]:
        """Return the entry, without text if it is the end."""
        if kind is not EntryKind.FINISHED:
            return [Stored(kind, payload)]
        finished = g.GenerationFinished.FromString(payload)
        finished.sequences[0].ClearField("text")
        return [Stored(kind, finished.SerializeToString())]

    def end_sequence(self, index: int, stop: str) -> list[Stored]:
        """Return nothing: no entry waits."""
        del index, stop
        return []
