"""Checks of a record's texts: prompt, conversation and outputs; and that its steps are complete."""

from collections.abc import Iterator

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.question import Question
from whence_server.analysis.replay.chats import check_chat
from whence_server.analysis.replay.checks import make_check
from whence_server.analysis.replay.ends import RELEASING, find_fault_of_results
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.generation import SequenceResult
from whence_server.domain.model import ModelInfo
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Step
from whence_server.text.tokenizer import TextTokenizer


def check_prompt(question: Question, tokenizer: TextTokenizer) -> Iterator[pb.VerificationCheck]:
    """Yield the checks of the conversation and of the prompt's token ids."""
    prompt = pb.VERIFICATION_SUBJECT_PROMPT
    if not question.keeps_text and question.prompt:
        what = "the content policy keeps no text, and the prompt's is on record"
        yield make_check(prompt, same=False, message=what)
        return
    if not question.keeps_text or question.prompt is None:
        yield make_check(prompt, same=None, message="the prompt's text is not on record")
        return
    if question.chat is not None:
        yield check_chat(question, tokenizer)
    adding = question.chat is None and question.decoding.add_special_tokens
    ids = tokenizer.encode(question.prompt, add_special_tokens=adding)
    if question.is_token_input:
        same: bool | None = False
    else:
        same = ids == question.prompt_token_ids
    what = "" if same else "the prompt's text gives other token ids than those on record"
    if not same and question.chat is None:
        # A request that gave ids has their text on record.
        same, what = _compare_given_ids(question, question.prompt, tokenizer)
    yield make_check(prompt, same=same, message=what)


def _compare_given_ids(
    question: Question, prompt: str, tokenizer: TextTokenizer
) -> tuple[bool | None, str]:
    """Return whether a prompt's ids give its text, None if also other ids would; and why."""
    ids = question.prompt_token_ids
    if tokenizer.decode(ids) != prompt:
        return False, "the prompt's ids give another text than the one on record"
    hidden = [token_id for token_id in ids if tokenizer.is_special(token_id)]
    if hidden:
        return None, (
            f"the prompt's ids give its text, and have {len(hidden)} special tokens that the text "
            "does not show"
        )
    return None, "the prompt's ids give its text, which the tokenizer divides otherwise"


def check_processors(question: Question, decoding: Decoding) -> pb.VerificationCheck:
    """Return the check of the processors' names."""
    names = tuple(list_processor_names(decoding))
    if question.logprobs_only:
        return make_check(
            pb.VERIFICATION_SUBJECT_PROCESSORS,
            same=None,
            message="another program applied them: no number after them is compared",
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
    if not fault:
        fault = find_fault_of_results(question, sequences)
    return make_check(pb.VERIFICATION_SUBJECT_STEPS, same=not fault, message=fault)


def _find_fault(question: Question, sequences: list[list[Step]], info: ModelInfo) -> str:
    by_index = {steps[0].sequence_index: steps for steps in sequences}
    for index, steps in by_index.items():
        if [step.index for step in steps] != list(range(len(steps))):
            return f"steps of sequence {index} are missing or repeated"
        forced = question.decoding.forced_token_ids
        if question.strategy is Strategy.FORCED and len(steps) > len(forced):
            return f"sequence {index} has {len(steps)} steps, and the given text {len(forced)}"
    size = info.vocabulary_size
    highest = max(question.prompt_token_ids, default=0)
    for decision in (step.decision for step in question.steps):
        listed = decision.candidates.token_ids if decision.candidates else []
        highest = max(highest, decision.token_id, *listed)
    highest = max(highest, *question.logprob_token_ids, 0)
    for made in question.rounds:
        highest = max([highest, *(each.token_id for each in made.continuations)])
    if highest >= size:
        return f"token {highest} is none of the model's {size}"
    room = info.max_context_length + 1
    longest = max(map(len, sequences), default=0) + len(question.prompt_token_ids)
    return f"{longest} tokens do not fit the model's context" if longest > room else ""


def check_texts(
    question: Question, decoding: Decoding, sequences: list[list[Step]], tokenizer: TextTokenizer
) -> Iterator[pb.VerificationCheck]:
    """Yield the checks of the outputs' texts."""
    subject = pb.VERIFICATION_SUBJECT_TEXT
    if not question.keeps_text:
        texts = [*(step.text for step in question.steps), *(it.text for it in question.results)]
        if any(texts):
            what = "the content policy keeps no text, and the record has some"
            yield make_check(subject, same=False, message=what)
        return
    by_index = {steps[0].sequence_index: steps for steps in sequences}
    for result in question.results:
        if steps := by_index.get(result.sequence_index, []):
            yield _check_text(result, steps, decoding, tokenizer)


def _check_text(
    result: SequenceResult, steps: list[Step], decoding: Decoding, tokenizer: TextTokenizer
) -> pb.VerificationCheck:
    stop = () if decoding.strategy is Strategy.FORCED else decoding.stop
    text = tokenizer.make_sequence_text(stop)
    # Where a stop string or a caller ended the sequence, held text was not released.
    releases = result.finish_reason in RELEASING and result.stop not in stop
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
