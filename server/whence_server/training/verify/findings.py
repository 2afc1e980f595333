"""What a verification says: facts, and whatever is not as the record has it, by name."""

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path


class Verdict(IntEnum):
    """How it ends: the numbers are the command's exit statuses."""

    VERIFIED = 0
    NOT_VERIFIED = 1
    CANNOT_BE_CHECKED = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the record has it.

    Attributes:
        subject: "record", "file", "tensor", "tokenizer", "weights", "model", "base", or "replay".
        name: which: a file's path, a tensor's name.
        problem: "changed", "missing", "not on record", ...
        expected: what the record has; "" where that has no place.
        found: what is there.
    """

    subject: str
    name: str
    problem: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        """One line for people."""
        line = f"{self.subject} {self.name}: {self.problem}".replace(" :", ":")
        if self.expected or self.found:
            line += f": expected {self.expected or 'none'}, found {self.found or 'none'}"
        return line


@dataclass(slots=True)
class Report:
    """What was found out about a directory."""

    directory: Path
    verdict: Verdict = Verdict.CANNOT_BE_CHECKED
    reason: str = ""
    """Why nothing could be checked."""
    model_digest: str = ""
    tokenizer_digest: str = ""
    weights_digest: str = ""
    num_files: int = 0
    """Files that are as the record has them; without a record, those that were digested."""
    num_tensors: int = 0
    """The same of tensors."""
    record: Path | None = None
    num_entries: int = 0
    head: str = ""
    training_run_id: str = ""
    run_name: str = ""
    step: int = 0
    num_planned_steps: int = 0
    attempt: int = 0
    path: str = ""
    """Where the record has the checkpoint, relative to itself."""
    merkle_root: str = ""
    num_documents: int = 0
    parent: str = ""
    """What the run went on from; "" where that is not on record."""
    base: str = ""
    """The model below an adapter, and how it compares; "" where the model is whole."""
    replay: str = ""
    """What a replay came to; "" where there was none."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing, and no fault."""
