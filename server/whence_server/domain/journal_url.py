"""Address of a journal's database, which may hold a password."""

from pathlib import Path
from urllib.parse import SplitResult, urlsplit

SCHEMES = ("postgresql", "postgres")


class JournalUrl:
    """URL of a database; its text is in no representation of the object.

    It is no dataclass: `asdict` of the settings would take it apart.

    Attributes:
        text: the URL as it was given, for the database's library alone.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        """Return host and database."""
        return f"JournalUrl({self})"

    def __str__(self) -> str:
        """Return host and database, for messages."""
        parts = urlsplit(self.text)
        where = parts.netloc.rpartition("@")[2] or "the default host"
        return f"{where}{parts.path}"


def parse_journal_url(text: str) -> JournalUrl:
    """Parse a URL.

    Raises:
        ValueError: it is no URL of a supported database; the message does not repeat it.
    """
    expected = "expected postgresql://USER@HOST:PORT/DATABASE"
    try:
        text.encode()
        parts: SplitResult = urlsplit(text)
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in SCHEMES or not text.startswith(f"{parts.scheme}://"):
        raise ValueError(expected)
    # Such a character in a password would make a part of it look like a host or a path.
    if "#" in text or text.count("@") > parts.netloc.count("@") or parts.netloc.count("@") > 1:
        raise ValueError(
            f"{expected}, with @ in a user or a password as %40, / as %2F, ? as %3F and # as %23"
        )
    return JournalUrl(text)


def parse_place(text: str) -> Path | JournalUrl:
    """Parse a path, or the URL of a database.

    Raises:
        ValueError: it is a malformed URL; the message does not repeat it.
    """
    if text.startswith(tuple(f"{scheme}:" for scheme in SCHEMES)):
        return parse_journal_url(text)
    if not text:
        raise ValueError("expected a path or postgresql://USER@HOST:PORT/DATABASE")
    return Path(text)
