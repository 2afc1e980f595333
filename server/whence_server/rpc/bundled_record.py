"""Conversion of a checked bundle to the whole generation that it shows."""

from collections.abc import Mapping
from typing import Any

from whence.proof.bundle import Bundle, HiddenLeaf
from whence.proof.leaves import KINDS
from whence.proof.statement import Statement
from whence.v1 import generation_pb2, verification_pb2
from whence_server.analysis.question import Unverifiable
from whence_server.rpc.verification_record import UnverifiableError

_STARTED = KINDS["started"]
_FIELDS = {
    KINDS["prompt_step"]: "prompt_steps",
    KINDS["step"]: "steps",
    KINDS["beam_round"]: "beam_rounds",
}


def make_record(bundle: Bundle, statement: Statement) -> verification_pb2.GenerationRecord:
    """Return the generation in a bundle, which must be checked before.

    Its end is no leaf: the finish reasons are those of the statement, and the tokens and texts of
    the results are those of the steps.

    Raises:
        UnverifiableError: entries are hidden, or a finish reason is unknown.
    """
    record = verification_pb2.GenerationRecord()
    num_hidden = 0
    for leaf in bundle.leaves:
        if isinstance(leaf, HiddenLeaf):
            num_hidden += 1
        elif leaf.kind == _STARTED:
            record.started.MergeFromString(leaf.entry)
        else:
            getattr(record, _FIELDS[leaf.kind]).add().MergeFromString(leaf.entry)
    if num_hidden or not bundle.leaves:
        raise UnverifiableError(
            Unverifiable.CONTENT_NOT_KEPT,
            f"the bundle hides {num_hidden} of {len(bundle.leaves)} entries: export it without "
            "--hide and --steps",
        )
    _add_end(record, statement.predicate["results"])
    return record


def _add_end(record: verification_pb2.GenerationRecord, results: Mapping[str, Any]) -> None:
    finished = record.finished
    finished.finish_reason = _read_reason(results.get("finishReason"))
    finished.num_prompt_tokens = _read_number(results.get("numPromptTokens"))
    finished.num_generated_tokens = _read_number(results.get("numGeneratedTokens"))
    sequences = results.get("sequences")
    for index, name in enumerate(sequences if isinstance(sequences, list) else []):
        finished.sequences.add(sequence_index=index, finish_reason=_read_reason(name))
    by_index = {result.sequence_index: result for result in finished.sequences}
    for step in record.steps:
        result = by_index.get(step.sequence_index)
        if result is None:
            raise UnverifiableError(
                Unverifiable.RECORD_UNREADABLE,
                f"the statement names no result of sequence {step.sequence_index}",
            )
        result.text += step.text
        if step.HasField("token_id"):
            result.token_ids.append(step.token_id)
    decoding = record.started.effective_decoding
    for result in finished.sequences:
        if result.finish_reason == generation_pb2.FINISH_REASON_STOP and decoding.stop:
            by_token = result.token_ids and result.token_ids[-1] in decoding.stop_token_ids
            # The statement does not say which stop string it was; the text without it does.
            result.stop = "" if by_token else decoding.stop[0]


def _read_reason(name: Any) -> generation_pb2.FinishReason.ValueType:
    known = generation_pb2.FinishReason.DESCRIPTOR.values_by_name
    if not isinstance(name, str) or name not in known or not known[name].number:
        raise UnverifiableError(
            Unverifiable.RECORD_UNREADABLE,
            f"the statement has the finish reason {str(name)[:60]!r}, which is unknown here",
        )
    return generation_pb2.FinishReason.ValueType(known[name].number)


def _read_number(found: Any) -> int:
    if not isinstance(found, int) or not 0 <= found < 1 << 32:
        raise UnverifiableError(
            Unverifiable.RECORD_UNREADABLE,
            f"the statement has the number of tokens {str(found)[:60]!r}, which no server writes",
        )
    return found
