"""The audit of several servers: one list, from whichever server it is asked for."""

import asyncio
from contextlib import AsyncExitStack

from whence.v1.audit_pb2 import ListAuditRequest, ListAuditResponse
from whence_server.cli import main
from whence_server.domain.audit import AuditAction, AuditEntry, Deed
from whence_server.domain.tracing import TraceContext
from whence_server.journal.journal import Journal
from whence_server.journal.postgres.store import PostgresStore
from whence_server.rpc.audit_servicer import AuditServicer
from whence_server.rpc.calls import Call

CALL = Call(TraceContext("4b" * 16, "0a" * 8), 0, 0, "ipv4:127.0.0.1:1")


def record(journal: Journal, *numbers: int) -> None:
    for number in numbers:
        caller = "alice" if number % 2 else "bob"
        deed = Deed(AuditAction.READ, number, "m", caller, detail=str(number))
        journal.audit.record(AuditEntry(deed, 1, number))


async def ask(journal: Journal, **fields: object) -> tuple[list[int], str]:
    """Return a page's records by their numbers, and the next page's token."""
    servicer = AuditServicer(journal.audit)
    answer = await servicer.list_audit(ListAuditRequest(**fields), CALL)
    page = ListAuditResponse.FromString(answer)
    return [int(it.detail) for it in page.records], page.next_page_token


async def test_every_server_lists_the_records_of_all(postgres, tmp_path):
    url = postgres.make_journal_url(str(tmp_path))

    async with AsyncExitStack() as opened:

        async def open_server(name: str) -> Journal:
            journal = await Journal.open(
                tmp_path / name, open_store=lambda *_: PostgresStore(url, 60.0)
            )
            opened.push_async_callback(journal.close)
            return journal

        a, b = await open_server("a"), await open_server("b")
        record(a, 1, 4, 5)
        record(b, 2, 3, 6)
        for journal in (a, b):
            await journal.flush()
        for journal in (a, b):
            assert await ask(journal) == ([6, 5, 4, 3, 2, 1], "")
            assert await ask(journal, caller_id="alice") == ([5, 3, 1], "")

        # A page goes on at another server, from where it began: not with what is written meanwhile.
        first, token = await ask(a, page_size=2)
        c = await open_server("c")
        record(b, 7)
        record(c, 8)
        for journal in (b, c):
            await journal.flush()
        second, token = await ask(b, page_size=3, page_token=token)
        third, end = await ask(c, page_size=3, page_token=token)
        assert [first, second, third, end] == [[6, 5], [4, 3, 2], [1], ""]
        assert await ask(a, page_size=2) == ([8, 7], (await ask(c, page_size=2))[1])

        await b.close()
        assert (await ask(a))[0] == [8, 7, 6, 5, 4, 3, 2, 1]

    # A directory that got the logs of several servers lists all of them too.
    backup = tmp_path / "backup"
    arguments = ["backup", "--from", url, "--to", str(backup)]
    assert await asyncio.to_thread(main, arguments) == 0
    journal = await Journal.open(backup)
    assert (await ask(journal))[0] == [8, 7, 6, 5, 4, 3, 2, 1]
    await journal.close()
