"""Errands between servers in PostgreSQL."""

from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.errors import translate_errors
from whence_server.journal.sharing.store import Errand

_ASK = "INSERT INTO errands (writer, generation_id, caller_id) VALUES (?, ?, ?) RETURNING number"
_LIST = """
    SELECT number, generation_id, caller_id FROM errands
    WHERE writer = ? AND outcome IS NULL ORDER BY number
"""
_END = "UPDATE errands SET outcome = ? WHERE number = ?"
_READ = "SELECT outcome FROM errands WHERE number = ?"
FORGET_OLD = "DELETE FROM errands WHERE asked_at < clock_timestamp() - interval '1 hour'"
"""Removes errands whose askers ended before the answer."""


def ask_deletion(
    connection: PostgresConnection, writer: int, generation_id: str, caller_id: str
) -> int:
    """Insert an errand, and tell the servers; return its number."""
    with connection:
        ((number,),) = connection.execute(_ASK, (writer, generation_id, caller_id)).fetchall()
        notify(connection, "whence_errands", writer)
    return int(number)


def list_errands(connection: PostgresConnection, writer: int) -> list[Errand]:
    """Return the unanswered errands of a log."""
    return [
        Errand(number, generation_id.decode(), caller_id.decode())
        for number, generation_id, caller_id in connection.execute(_LIST, (writer,)).fetchall()
    ]


def end_errand(connection: PostgresConnection, number: int, outcome: str) -> None:
    """Answer an errand."""
    connection.execute(_END, (outcome, number))


def read_outcome(connection: PostgresConnection, number: int) -> str | None:
    """Return the answer to an errand; None if there is none yet."""
    for (outcome,) in connection.execute(_READ, (number,)).fetchall():
        return None if outcome is None else outcome.decode()
    return None


def forget_errand(connection: PostgresConnection, number: int) -> None:
    """Remove an errand."""
    connection.execute("DELETE FROM errands WHERE number = ?", (number,))


def notify(connection: PostgresConnection, channel: str, writer: int) -> None:
    """Tell the servers, with the commit, that a writer's log or errands have changed."""
    with translate_errors():
        connection.raw.execute("SELECT pg_notify(%s, %s)", (channel, str(writer)))
