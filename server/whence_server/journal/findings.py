"""Findings of a verification."""

from dataclasses import dataclass, field

_MAX_SHOWN = 80
_MAX_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the stored and the written journal."""

    table: str
    """Name of the table; "journal" for the files, "database" for SQLite's own structures."""
    row: str
    column: str = ""
    stored: object = None
    expected: object = None
    detail: str = ""
    """Description of the fault; "" if the stored and expected values are enough."""

    def __str__(self) -> str:
        """Format the finding on one line."""
        where = " ".join(part for part in (self.table, self.row, self.column) if part)
        if self.detail:
            return f"{where}: {self.detail}"
        return (
            f"{where}: stored {_format_value(self.stored)}, expected {_format_value(self.expected)}"
        )


@dataclass(slots=True)
class VerifyReport:
    """Result of a verification."""

    num_entries: int = 0
    """Number of entries before the first fault of each log's chain, all logs together."""
    heads: list[str] = field(default_factory=list)
    """Hash of each log's last intact entry, in hex: note it elsewhere, with the number of entries.
    """
    num_generations: int = 0
    chain_intact: bool = True
    num_findings: int = 0
    findings: list[Finding] = field(default_factory=list)
    """The first thousand findings."""
    notes: list[str] = field(default_factory=list)
    """Remarks that are not faults."""

    @property
    def head(self) -> str:
        """Heads of all logs, with commas between; one for a journal of one server."""
        return ", ".join(self.heads)

    @property
    def intact(self) -> bool:
        """True if the journal is as it was written."""
        return not self.num_findings

    @property
    def nothing(self) -> bool:
        """True if the journal is intact and has no entries."""
        return self.intact and not self.num_entries

    def add(self, finding: Finding) -> None:
        """Count one finding, and keep it if it is one of the first thousand."""
        self.num_findings += 1
        if len(self.findings) < _MAX_KEPT:
            self.findings.append(finding)


def _format_value(value: object) -> str:
    if isinstance(value, bytes):
        return f"{value.hex()[:16]}... ({len(value)} bytes)" if value else "no bytes"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
