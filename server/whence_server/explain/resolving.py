"""Token ids of what a question asks about."""

from collections.abc import Sequence

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.explanations import ExplainQuestion
from whence_server.explain.target import Target
from whence_server.text.tokenizer import TextTokenizer


def resolve_target(
    question: ExplainQuestion, tokenizer: TextTokenizer, vocabulary_size: int, max_length: int
) -> Target:
    """Return the token ids of a question.

    Args:
        question: the question, with texts or ids.
        tokenizer: tokenizer of the model.
        vocabulary_size: number of the model's token ids.
        max_length: number of tokens of the model's context.

    Raises:
        InvalidRequestError: the question names no tokens, unknown ones, or too many.
    """
    prompt = _encode(question.prompt, tokenizer, special=True)
    output = _encode(question.output, tokenizer, special=False)
    field = "given" if question.weights is None else "recorded"
    _check_ids(f"{field}.prompt_tokens", prompt, vocabulary_size)
    _check_ids(f"{field}.tokens", output, vocabulary_size)
    if not output:
        raise _refuse(f"{field}.text", "has no tokens")
    start = len(prompt) + question.begin
    if start < 1:
        raise _refuse(f"{field}.prompt", "has no tokens: nothing comes before the output")
    against = _resolve_contrast(question, tokenizer, vocabulary_size)
    ids = (*prompt, *output)
    longest = max(len(ids), start + len(against))
    if longest > max_length:
        raise _refuse(
            field, f"has {longest} tokens up to the end of the span; the model reads {max_length}"
        )
    span = ids[start:]
    if against == span:
        raise _refuse(_name_contrast(question), "is the span itself: name something else")
    if isinstance(question.against, int) and len(span) != 1:
        raise _refuse("against_token_id", f"needs a span of one token, not of {len(span)}")
    return Target(ids, start, len(prompt), against)


def _resolve_contrast(
    question: ExplainQuestion, tokenizer: TextTokenizer, vocabulary_size: int
) -> tuple[int, ...]:
    if question.against is None:
        return ()
    if isinstance(question.against, int):
        _check_ids("against_token_id", (question.against,), vocabulary_size)
        return (question.against,)
    ids = _encode(question.against, tokenizer, special=False)
    if not ids:
        raise _refuse("against_text", "has no tokens")
    return ids


def _name_contrast(question: ExplainQuestion) -> str:
    return "against_token_id" if isinstance(question.against, int) else "against_text"


def _encode(
    text: str | tuple[int, ...], tokenizer: TextTokenizer, *, special: bool
) -> tuple[int, ...]:
    if isinstance(text, tuple):
        return text
    return tuple(tokenizer.encode(text, add_special_tokens=special))


def _check_ids(field: str, ids: Sequence[int], vocabulary_size: int) -> None:
    largest = max(ids, default=0)
    if largest >= vocabulary_size:
        raise _refuse(field, f"has token {largest}; the model has {vocabulary_size} tokens")


def _refuse(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description))
