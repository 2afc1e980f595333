"""Prompt and output of a generation, as far as a checked bundle shows them."""

from collections.abc import Sequence
from typing import NamedTuple

from whence.proof.bundle import Bundle, OpenLeaf
from whence.proof.faults import ProofError
from whence.proof.leaves import KINDS
from whence.proof.statement import Statement
from whence.v1 import generation_pb2, step_pb2

GAP = "[...]"
"""Mark of hidden steps in a text that is shown."""
_STARTED, _STEP = KINDS["started"], KINDS["step"]


class SequenceText(NamedTuple):
    """Text of one sequence.

    Attributes:
        sequence_index: index of the sequence.
        text: its text, with GAP where steps are hidden.
        whole: True if nothing of it is hidden.
    """

    sequence_index: int
    text: str
    whole: bool


class Content(NamedTuple):
    """Content of a generation.

    Attributes:
        prompt: text of the prompt; None if it is hidden or was not kept.
        sequences: texts of the sequences with shown steps, by index.
        keeps_text: True if the content policy of the record keeps texts.
    """

    prompt: str | None
    sequences: Sequence[SequenceText]
    keeps_text: bool


def read_content(bundle: Bundle, statement: Statement) -> Content:
    """Return what a bundle shows. `verify_bundle` must have checked it."""
    prompt, steps = None, dict[int, list[step_pb2.Step]]()
    last_hidden, last_shown = -1, dict[int, int]()
    for index, leaf in enumerate(bundle.leaves):
        if not isinstance(leaf, OpenLeaf):
            last_hidden = index
        elif leaf.kind == _STARTED:
            prompt = generation_pb2.GenerationStarted.FromString(leaf.entry).prompt or None
        elif leaf.kind == _STEP:
            step = step_pb2.Step.FromString(leaf.entry)
            steps.setdefault(step.sequence_index, []).append(step)
            last_shown[step.sequence_index] = index
    sequences = [
        _join(index, steps[index], is_end_shown=last_hidden < last_shown[index])
        for index in sorted(steps)
    ]
    keeps_text = statement.predicate.get("contentPolicy") == "CONTENT_POLICY_FULL"
    return Content(prompt, sequences, keeps_text)


def find_text(content: Content, text: str) -> int:
    """Return the index of the sequence that has a text.

    Args:
        content: content of a checked bundle.
        text: the text; one newline at its end, which an editor adds, may be too much.

    Raises:
        ProofError: no sequence has it, or the bundle does not show whole texts.
    """
    if not content.keeps_text:
        raise ProofError("the record keeps no text: its content policy leaves texts out")
    whole = [sequence for sequence in content.sequences if sequence.whole]
    if not whole:
        raise ProofError("the bundle hides steps: no text can be compared with its output")
    for wanted in (text, text.removesuffix("\n")):
        for sequence in whole:
            if sequence.text == wanted:
                return sequence.sequence_index
    raise ProofError("the text is not the output of this generation")


def _join(index: int, steps: Sequence[step_pb2.Step], *, is_end_shown: bool) -> SequenceText:
    pieces: list[str] = []
    expected, whole = 0, is_end_shown
    for step in steps:
        if step.index != expected:
            pieces.append(GAP)
            whole = False
        pieces.append(step.text)
        expected = step.index + 1
    if not is_end_shown:
        pieces.append(GAP)
    return SequenceText(index, "".join(pieces), whole)
