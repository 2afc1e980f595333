"""Checks of a record's texts: prompt, conversation, outputs and their ends."""

from collections.abc import Iterator

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question
from whence_server.domain.decoding import Decoding, FinishReason, Strategy
from whence_server.domain.errors import WhenceError
from whence_server.domain.generation import SequenceResult
from whence_server.domain.model import ModelInfo
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Step
from whence_server.text.template_arguments import read_arguments, read_tools
from whence_server.text.tokenizer import TextTokenizer

_SAME = pb.VERIFICATION_OUTCOME_SAME
_DIFFERENT = pb.VERIFICATION_OUTCOME_DIFFERENT
_NOT_CHECKED = pb.VERIFICATION_OUTCOME_NOT_CHECKED
_RELEASING = frozenset({FinishReason.END_OF_SEQUENCE, FinishReason.STOP, FinishReason.LENGTH})


def make_check(
    subject: pb.VerificationSubject.ValueType,
    *,
    same: bool | None,
    message: str = "",
    recorded: str = "",
    found: str = "",
) -> pb.VerificationCheck:
    """Return a check; `same` is None if it could not be made."""
    outcome = _NOT_CHECKED if same is None else _SAME if same else _DIFFERENT
    return pb.VerificationCheck(
        subject=subject, outcome=outcome, message=message, recorded=recorded, found=found
    )


def check_prompt(question: Question, tokenizer: TextTokenizer) -> Iterator[pb.VerificationCheck]:
    """Yield the checks of the conversation and of the prompt's token ids."""
    chat, prompt = pb.VERIFICATION_SUBJECT_CHAT, pb.VERIFICATION_SUBJECT_PROMPT
    if not question.keeps_text or question.prompt is None:
        yield make_check(prompt, same=None, message="the prompt's text is not on record")
        return
    if question.chat is not None:
        try:
            rendered = _render(question, tokenizer)
        except (WhenceError, ValueError) as error:
            yield make_check(chat, same=False, message=f"the template refuses it: {error}")
        else:
            same = rendered == question.prompt
            what = "" if same else "the template gives another text than the prompt on record"
            yield make_check(chat, same=same, message=what)
    if question.is_token_input:
        same = tokenizer.decode(question.prompt_token_ids) == question.prompt
        what = "" if same else "the prompt's ids give another text than the one on record"
        yield make_check(prompt, same=same, message=what)
        return
    adding = question.chat is None and question.decoding.add_special_tokens
    ids = tokenizer.encode(question.prompt, add_special_tokens=adding)
    same = ids == question.prompt_token_ids
    if not same and question.chat is None:
        # A request that gave ids has their text on record.
        same = tokenizer.decode(question.prompt_token_ids) == question.prompt
    what = "" if same else "the prompt's text gives other token ids than those on record"
    yield make_check(prompt, same=same, message=what)


def _render(question: Question, tokenizer: TextTokenizer) -> str:
    if question.chat is None:
        raise ValueError("the generation has no conversation")
    given = question.chat.input
    return tokenizer.render_chat(
        given.messages,
        read_arguments(given.template_arguments_json),
        given.template_name,
        read_tools(given.tools_json),
    ).text


def check_processors(question: Question, decoding: Decoding) -> pb.VerificationCheck:
    """Return the check of the processors' names."""
    names = tuple(list_processor_names(decoding))
    if question.logprobs_only:
        return make_check(
            pb.VERIFICATION_SUBJECT_PROCESSORS, same=None, message="another program applied them"
        )
    return make_check(
        pb.VERIFICATION_SUBJECT_PROCESSORS,
        same=names == question.processor_names,
        recorded=", ".join(question.processor_names),
        found=", ".join(names),
    )


def check_steps(
    question: Question, sequences: list[list[Step]], info: ModelInfo
) -> pb.VerificationCheck:
    """Return the check that each sequence is complete, of tokens, and equal to its result."""
    fault = _find_fault(question, sequences, info)
    return make_check(pb.VERIFICATION_SUBJECT_STEPS, same=not fault, message=fault)


def _find_fault(question: Question, sequences: list[list[Step]], info: ModelInfo) -> str:
    by_index = {steps[0].sequence_index: steps for steps in sequences}
    for index, steps in by_index.items():
        if [step.index for step in steps] != list(range(len(steps))):
            return f"steps of sequence {index} are missing or repeated"
        forced = question.decoding.forced_token_ids
        if question.strategy is Strategy.FORCED and len(steps) > len(forced):
            return f"sequence {index} has {len(steps)} steps, and the given text {len(forced)}"
    for result in question.results:
        steps = by_index.get(result.sequence_index, [])
        ids = [step.decision.token_id for step in steps]
        if result.token_ids and list(result.token_ids) != ids:
            return f"the result of sequence {result.sequence_index} has other tokens than its steps"
    size = info.vocabulary_size
    highest = max(question.prompt_token_ids, default=0)
    for decision in (step.decision for step in question.steps):
        listed = decision.candidates.token_ids if decision.candidates else []
        highest = max(highest, decision.token_id, *listed)
    for made in question.rounds:
        highest = max([highest, *(each.token_id for each in made.continuations)])
    if highest >= size:
        return f"token {highest} is none of the model's {size}"
    room = info.max_context_length + 1
    longest = max(map(len, sequences), default=0) + len(question.prompt_token_ids)
    return f"{longest} tokens do not fit the model's context" if longest > room else ""


def check_outputs(
    question: Question, decoding: Decoding, sequences: list[list[Step]], tokenizer: TextTokenizer
) -> Iterator[pb.VerificationCheck]:
    """Yield the checks of the outputs' texts and of the sequences' ends."""
    by_index = {steps[0].sequence_index: steps for steps in sequences}
    for result in question.results:
        steps = by_index.get(result.sequence_index, [])
        if not steps:
            continue
        if question.keeps_text:
            yield _check_text(result, steps, decoding, tokenizer)
        yield _check_end(result, steps, decoding, keeps_text=question.keeps_text)


def _check_text(
    result: SequenceResult, steps: list[Step], decoding: Decoding, tokenizer: TextTokenizer
) -> pb.VerificationCheck:
    stop = () if decoding.strategy is Strategy.FORCED else decoding.stop
    text = tokenizer.make_sequence_text(stop)
    # Where a stop string or a caller ended the sequence, held text was not released.
    releases = result.finish_reason in _RELEASING and result.stop not in stop
    faults = []
    for place, step in enumerate(steps):
        is_last = place == len(steps) - 1
        piece = text.push(step.decision.token_id, last=is_last and releases)
        if piece.text != step.text:
            faults.append(f"step {step.index} has another text than its token gives")
        if piece.stop is not None and not is_last:
            faults.append(f"a stop string ends the sequence at step {step.index}")
            break
    if text.text != result.text:
        faults.append("the result has another text than its tokens give")
    where = f"sequence {result.sequence_index}: {faults[0]}" if faults else ""
    return make_check(pb.VERIFICATION_SUBJECT_TEXT, same=not faults, message=where)


def _check_end(
    result: SequenceResult, steps: list[Step], decoding: Decoding, *, keeps_text: bool
) -> pb.VerificationCheck:
    ids = [step.decision.token_id for step in steps]
    ends = set() if decoding.ignore_eos else set(decoding.eos_token_ids)
    fault = ""
    if decoding.strategy is not Strategy.FORCED:
        stops = ends | set(decoding.stop_token_ids)
        early = next((i for i, token_id in enumerate(ids[:-1]) if token_id in stops), None)
        if early is not None:
            fault = f"token {ids[early]} at step {early} ends the sequence, and it goes on"
        elif result.finish_reason is FinishReason.END_OF_SEQUENCE and ids[-1] not in ends:
            fault = f"its last token {ids[-1]} is no end-of-sequence token"
        elif result.finish_reason is FinishReason.STOP:
            named = ids[-1] in decoding.stop_token_ids or bool(decoding.stop) or not keeps_text
            fault = "" if named else "no stop string or stop token is among its settings"
    if not fault and result.finish_reason is FinishReason.LENGTH:
        most = len(decoding.forced_token_ids) or decoding.max_new_tokens
        if len(ids) > most:
            fault = f"it has {len(ids)} tokens, and at most {most} were allowed"
    where = f"sequence {result.sequence_index}: {fault}" if fault else ""
    return make_check(pb.VERIFICATION_SUBJECT_END, same=not fault, message=where)
