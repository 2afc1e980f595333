"""Comparison of a bundle's shown entries with what its statement says."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from whence.proof.bundle import Bundle, OpenLeaf
from whence.proof.faults import ProofError
from whence.proof.leaves import KINDS
from whence.proof.predicate import describe_start
from whence.proof.statement import Statement
from whence.v1 import generation_pb2, step_pb2

_STARTED, _PROMPT_STEP, _STEP = KINDS["started"], KINDS["prompt_step"], KINDS["step"]
_OPTIONAL = ("rng", "trainingRun", "grades", "upstream", "recordedBy", "caller")
"""Names that a statement has only if the start implies them."""
_MESSAGES: dict[int, type[Message]] = {
    KINDS["started"]: generation_pb2.GenerationStarted,
    KINDS["prompt_step"]: step_pb2.Step,
    KINDS["step"]: step_pb2.Step,
    KINDS["beam_round"]: generation_pb2.BeamRound,
}


def check_entries(bundle: Bundle, statement: Statement) -> None:
    """Check that the shown entries are a generation's, and that the statement is about them.

    Raises:
        ProofError: an entry is at the wrong place, or differs from what the statement says.
    """
    steps: Counter[int] = Counter()
    is_whole = all(isinstance(leaf, OpenLeaf) for leaf in bundle.leaves)
    for index, leaf in bundle.list_open():
        message = _parse(leaf, index)
        if (leaf.kind == _STARTED) != (index == 0):
            raise ProofError(f"leaves[{index}] is a {leaf.kind_name}; only the first is the start")
        if isinstance(message, generation_pb2.GenerationStarted):
            _compare_start(message, bundle.prompt_key, statement)
        elif isinstance(message, step_pb2.Step) and leaf.kind == _STEP:
            if is_whole and message.index != steps[message.sequence_index]:
                raise ProofError(
                    f"leaves[{index}] is step {message.index} of sequence "
                    f"{message.sequence_index}, expected step {steps[message.sequence_index]}"
                )
            steps[message.sequence_index] += 1
    if is_whole:
        _compare_number(sum(steps.values()), statement)


def _parse(leaf: OpenLeaf, index: int) -> Message:
    try:
        return _MESSAGES[leaf.kind].FromString(leaf.entry)
    except DecodeError:
        raise ProofError(f"leaves[{index}] is no message of the contract") from None


def _compare_start(
    started: generation_pb2.GenerationStarted, prompt_key: bytes, statement: Statement
) -> None:
    said = statement.predicate
    try:
        parts = describe_start(started, prompt_key)
    except (ValueError, OverflowError, OSError) as error:
        raise ProofError(f"leaves[0] has a value that no server writes: {error}") from None
    for name in (*parts, *(name for name in _OPTIONAL if name not in parts)):
        if said.get(name) != parts.get(name):
            raise ProofError(
                f"the statement's {name} differs from the start on record: it says "
                f"{_shorten(said.get(name))}, and the start implies {_shorten(parts.get(name))}"
            )
    if "grades" not in parts:
        _compare_results(parts, said)


def _compare_results(parts: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Compare the results' numbers with the start's, where the server itself computed."""
    results = said.get("results", {})
    num_tokens, counted = parts["prompt"]["numTokens"], results.get("numPromptTokens")
    # A start from before the field counts nothing.
    if num_tokens and counted != num_tokens:
        raise ProofError(
            f"the statement's results count {_shorten(counted)} prompt tokens, and the start "
            f"{num_tokens}"
        )
    most = max(parts["decoding"].get("num_return_sequences", 1), 1)
    sequences = results.get("sequences")
    if not isinstance(sequences, list) or len(sequences) > most:
        raise ProofError(
            f"the statement's results name the sequences {_shorten(sequences)}, and the start "
            f"implies at most {most}"
        )


def _compare_number(num_steps: int, statement: Statement) -> None:
    """Compare the number of steps with the statement's, where each step is a token."""
    said = statement.predicate.get("results", {}).get("numGeneratedTokens")
    # An upstream counts its own tokens, and steps may be pieces of text.
    if "grades" not in statement.predicate and said != num_steps:
        raise ProofError(f"the statement says {said} generated tokens, and {num_steps} are shown")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."
