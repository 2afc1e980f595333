"""Checks of the ends of a record: each sequence, its reason, and that nothing is missing."""

from collections.abc import Iterator, Sequence

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question
from whence_server.analysis.replay.checks import make_check
from whence_server.analysis.replay.numbers import measure
from whence_server.domain.decoding import Decoding, FinishReason, Strategy
from whence_server.domain.generation import SequenceResult
from whence_server.domain.steps import Step
from whence_server.text.tokenizer import TextTokenizer

RELEASING = frozenset({FinishReason.END_OF_SEQUENCE, FinishReason.STOP, FinishReason.LENGTH})
"""Reasons that tokens or settings give, and that a replay can thus check."""
_SUM_ROUNDING = 1e-5


def find_fault_of_results(question: Question, sequences: Sequence[Sequence[Step]]) -> str:
    """Return what is wrong with the set of sequences and results; "" if nothing is."""
    wanted = list(range(question.decoding.num_return_sequences))
    told = [result.sequence_index for result in question.results]
    by_index = {steps[0].sequence_index: steps for steps in sequences}
    beyond = [index for index in (*by_index, *told) if index not in wanted]
    if beyond:
        return f"sequence {beyond[0]} is on record, and the request has {len(wanted)}"
    # Of another program's sequences some may have no token on record.
    if not question.logprobs_only and told != wanted:
        return f"results of sequences {told} are on record, and the request has {len(wanted)}"
    missing = [index for index in by_index if index not in told]
    if missing:
        return f"sequence {missing[0]} has steps, and no result"
    faults = (
        _find_fault_of_result(question, result, by_index.get(result.sequence_index, ()))
        for result in question.results
    )
    return next(filter(None, faults), "") or _find_fault_of_whole(question)


def _find_fault_of_result(question: Question, result: SequenceResult, steps: Sequence[Step]) -> str:
    ids = [step.decision.token_id for step in steps]
    is_told = bool(result.token_ids) or not question.logprobs_only
    where = f"the result of sequence {result.sequence_index}"
    if is_told and list(result.token_ids) != ids:
        return f"{where} has other tokens than its steps"
    if not steps and result.text:
        return f"{where} has a text, and no steps"
    fault = _find_fault_of_sum(result, steps)
    return f"{where} {fault}" if fault else ""


def _find_fault_of_sum(result: SequenceResult, steps: Sequence[Step]) -> str:
    logprobs = [step.decision.logprob for step in steps]
    told = [logprob for logprob in logprobs if logprob is not None]
    if result.logprob is None or len(told) < len(logprobs):
        return ""
    total = sum(told)
    if measure(result.logprob, total) <= _SUM_ROUNDING * max(1.0, abs(total)):
        return ""
    return f"has a logprob of {result.logprob:.6f}, and its steps sum up to {total:.6f}"


def _find_fault_of_whole(question: Question) -> str:
    """Return what is wrong with the reason and the number of tokens of the whole generation."""
    if question.logprobs_only or not question.results:
        return ""
    first = question.results[0].finish_reason
    if question.finish_reason in RELEASING and question.finish_reason is not first:
        return (
            f"the generation ends with {question.finish_reason.name}, and its first sequence with "
            f"{first.name}"
        )
    number = sum(len(result.token_ids) for result in question.results)
    if question.num_generated_tokens not in {None, number}:
        return f"{question.num_generated_tokens} tokens are told, and {number} are on record"
    return ""


def check_ends(
    question: Question,
    decoding: Decoding,
    sequences: Sequence[Sequence[Step]],
    tokenizer: TextTokenizer,
    room: int,
) -> Iterator[pb.VerificationCheck]:
    """Yield the check of each sequence's end.

    Args:
        question: the record.
        decoding: its settings, with the model's end-of-sequence tokens.
        sequences: steps of each sequence.
        tokenizer: of the model.
        room: number of tokens that the model's context has after the prompt.
    """
    end = pb.VERIFICATION_SUBJECT_END
    by_index = {steps[0].sequence_index: steps for steps in sequences}
    for result in question.results:
        steps = by_index.get(result.sequence_index, ())
        where = f"sequence {result.sequence_index}: "
        if result.finish_reason not in RELEASING:
            what = "a caller, a clock or a failure ended it: that it went no further is not shown"
            fault = _find_early_end(steps, decoding)
            yield make_check(end, same=False if fault else None, message=where + (fault or what))
            continue
        fault = _find_early_end(steps, decoding) or _find_wrong_reason(
            result, steps, question, decoding, tokenizer, room
        )
        if not fault and _is_hidden(result, steps, question, decoding):
            what = "the stop string that ended it is not on record"
            yield make_check(end, same=None, message=where + what)
            continue
        yield make_check(end, same=not fault, message=where + fault if fault else "")


def _list_ends(decoding: Decoding) -> tuple[set[int], set[int]]:
    """Return the end-of-sequence tokens and the stop tokens that end a sequence."""
    if decoding.strategy is Strategy.FORCED:
        return set(), set()
    ends = set() if decoding.ignore_eos else set(decoding.eos_token_ids)
    return ends, set(decoding.stop_token_ids)


def _find_early_end(steps: Sequence[Step], decoding: Decoding) -> str:
    ends, stops = _list_ends(decoding)
    for step in steps[:-1]:
        if step.decision.token_id in ends | stops:
            token_id = step.decision.token_id
            return f"token {token_id} at step {step.index} ends the sequence, and it goes on"
    return ""


def _find_wrong_reason(  # noqa: PLR0917 - the parts of an end
    result: SequenceResult,
    steps: Sequence[Step],
    question: Question,
    decoding: Decoding,
    tokenizer: TextTokenizer,
    room: int,
) -> str:
    """Return why the reason on record is none that the last token gives; "" if it is one."""
    reason = result.finish_reason
    if not steps:
        return f"it ends with {reason.name} before its first token"
    # Another program may have ends and limits of its own.
    if question.logprobs_only or _is_hidden(result, steps, question, decoding):
        return ""
    is_forced = decoding.strategy is Strategy.FORCED
    longest = len(decoding.forced_token_ids) if is_forced else decoding.max_new_tokens
    most = min(longest or decoding.max_new_tokens, max(room, 1))
    if len(steps) > most:
        return f"it has {len(steps)} tokens, and at most {most} were allowed"
    given, told = _find_end(steps, decoding, tokenizer, most)
    if given is None:
        return f"it ends with {reason.name}, and nothing ends it after {len(steps)} tokens"
    if reason is not given:
        return f"it ends with {reason.name} on record, and with {given.name} here"
    is_told = question.keeps_text and question.are_stops_told
    is_other = is_told and result.stop != told
    return "another stop is on record than the one that ends it" if is_other else ""


def _find_end(
    steps: Sequence[Step], decoding: Decoding, tokenizer: TextTokenizer, most: int
) -> tuple[FinishReason | None, str]:
    """Return the reason for which the last token ends a sequence, and the stop's text."""
    ends, stops = _list_ends(decoding)
    last, is_full = steps[-1].decision.token_id, len(steps) == most
    stop = _find_stop(steps, decoding, tokenizer, last=is_full or last in ends | stops)
    if stop is not None:
        return FinishReason.STOP, stop
    if last in ends:
        return FinishReason.END_OF_SEQUENCE, ""
    if last in stops:
        return FinishReason.STOP, tokenizer.get_token_text(last)
    return (FinishReason.LENGTH if is_full else None), ""


def _is_hidden(
    result: SequenceResult, steps: Sequence[Step], question: Question, decoding: Decoding
) -> bool:
    """Return whether only a stop string can have ended a sequence, and the record has no texts."""
    if question.keeps_text or question.logprobs_only or not steps:
        return False
    ends, stops = _list_ends(decoding)
    is_token = steps[-1].decision.token_id in ends | stops
    return result.finish_reason is FinishReason.STOP and not is_token


def _find_stop(
    steps: Sequence[Step], decoding: Decoding, tokenizer: TextTokenizer, *, last: bool
) -> str | None:
    """Return the stop string that the last token completes; None if it completes none."""
    if not decoding.stop or decoding.strategy is Strategy.FORCED:
        return None
    text = tokenizer.make_sequence_text(decoding.stop)
    stop = None
    for step in steps:
        if stop is not None:
            return None  # the check of the texts names it
        stop = text.push(step.decision.token_id, last=last and step is steps[-1]).stop
    return stop
