"""What a verification finds."""

from dataclasses import dataclass, field

_MAX_SHOWN = 80
_MAX_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written."""

    table: str
    """Or "journal" for what concerns no single table."""
    row: str
    column: str = ""
    stored: object = None
    expected: object = None
    detail: str = ""
    """In words, where stored and expected values do not say it."""

    def __str__(self) -> str:
        """The finding on one line."""
        where = " ".join(part for part in (self.table, self.row, self.column) if part)
        if self.detail:
            return f"{where}: {self.detail}"
        return f"{where}: stored {_shown(self.stored)}, expected {_shown(self.expected)}"


@dataclass(slots=True)
class VerifyReport:
    """Everything that was found, and how far the chain goes."""

    num_entries: int = 0
    """Entries that were found in order."""
    head: str = ""
    """The last good entry's hash in hex: note it elsewhere, with the number of entries."""
    num_generations: int = 0
    chain_intact: bool = True
    num_findings: int = 0
    findings: list[Finding] = field(default_factory=list)
    """The first thousand of them."""
    notes: list[str] = field(default_factory=list)
    """What is no fault, and worth knowing."""

    @property
    def intact(self) -> bool:
        """Whether everything is as it was written."""
        return not self.num_findings

    @property
    def nothing(self) -> bool:
        """Whether there was nothing to verify."""
        return self.intact and not self.num_entries

    def add(self, finding: Finding) -> None:
        """Take note of one finding."""
        self.num_findings += 1
        if len(self.findings) < _MAX_KEPT:
            self.findings.append(finding)


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        return f"{value.hex()[:16]}... ({len(value)} bytes)" if value else "no bytes"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
