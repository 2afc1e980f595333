"""Division of a question's context into segments."""

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.explanations import ExplainQuestion
from whence_server.explain.segment_units import Unit
from whence_server.explain.segments import (
    PromptTokenizer,
    Segment,
    SegmentsError,
    check_segments,
    divide,
    read_texts,
)
from whence_server.explain.target import Target


def divide_context(
    question: ExplainQuestion, target: Target, tokenizer: PromptTokenizer
) -> list[Segment]:
    """Return the segments: of the prompt, and of the output before the span.

    Raises:
        InvalidRequestError: the caller's own segments are wrong, or nothing can be taken out.
    """
    if question.segments is not None:
        segments = [Segment(*each) for each in question.segments]
        try:
            check_segments(segments, target.start)
        except SegmentsError as error:
            raise _refuse("segmentation.segments", str(error)) from error
    else:
        unit = None if question.unit is None else Unit[question.unit.name]
        prompt = read_texts(tokenizer, target.ids[: target.num_prompt])
        segments, chosen = divide(prompt, unit, question.contents)
        before = read_texts(tokenizer, target.ids[target.num_prompt : target.start])
        # The output is nobody's message: the span's own beginning is context as well.
        own, _ = divide(before, Unit.LINES if chosen is Unit.MESSAGES else chosen)
        shift = target.num_prompt
        segments += [Segment(begin + shift, end + shift) for begin, end in own]
    if not segments:
        raise _refuse(
            "segmentation",
            "leaves nothing to take out: the context has only the chat template's own tokens; "
            "name segments, or another unit",
        )
    return segments


def _refuse(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description))
