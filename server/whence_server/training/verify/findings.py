"""Report of a verification: facts, and each difference from the record."""

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class Verdict(IntEnum):
    """Result of a verification; the values are the command's exit statuses."""

    VERIFIED = 0
    NOT_VERIFIED = 1
    CANNOT_BE_CHECKED = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference from the record.

    Attributes:
        subject: "record", "file", "tensor", "tokenizer", "weights", "model", "base", or "replay".
        name: path of a file, or name of a tensor.
        problem: "changed", "missing", "not on record", ...
        expected: value on record; "" if there is none.
        found: value that was found; "" if there is none.
    """

    subject: str
    name: str
    problem: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        """Return the finding as one line of text."""
        line = f"{self.subject} {self.name}: {self.problem}".replace(" :", ":")
        if self.expected or self.found:
            line += f": expected {self.expected or 'none'}, found {self.found or 'none'}"
        return line


@dataclass(slots=True)
class Report:
    """Results of the verification of a directory."""

    directory: Path
    verdict: Verdict = Verdict.CANNOT_BE_CHECKED
    reason: str = ""
    """Reason why nothing could be checked."""
    model_digest: str = ""
    tokenizer_digest: str = ""
    weights_digest: str = ""
    num_files: int = 0
    """Number of files that are as recorded; without a record, of files that were digested."""
    num_tensors: int = 0
    """Number of tensors that are as recorded; without a record, of tensors that were digested."""
    record: Path | None = None
    num_entries: int = 0
    head: str = ""
    training_run_id: str = ""
    run_name: str = ""
    step: int = 0
    num_planned_steps: int = 0
    attempt: int = 0
    path: str = ""
    """Path of the checkpoint on record, relative to the record."""
    merkle_root: str = ""
    num_documents: int = 0
    parent: str = ""
    """Model that the run continued from; "" if it is not on record."""
    base: str = ""
    """Base model of an adapter, and the result of its comparison; "" for a whole model."""
    replay: str = ""
    """Result of a replay; "" if there was none."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Remarks that are not differences."""
