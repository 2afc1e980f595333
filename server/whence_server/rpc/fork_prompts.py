"""Token ids that a branch has in the place of its parent's."""

from whence.v1 import generation_pb2 as pb
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.generation.parents import Parent
from whence_server.text.tokenizer import TextTokenizer
from whence_server.text.unicode import LoneSurrogateError

_MAX_EDITS = 1_024
_MAX_TEXT = 16 << 10
"""Characters of all texts: the front tokenizes them, in some ten milliseconds."""


def read_instead(
    request: pb.ForkGenerationRequest, parent: Parent, limits: Limits, tokenizer: TextTokenizer
) -> tuple[int, ...]:
    """Return the tokens in the place of the parent's; none if the step chooses anew.

    Raises:
        InvalidRequestError: there are none although some are asked for, or too many.
    """
    if not request.HasField("instead"):
        return ()
    kind = request.instead.WhichOneof("continuation")
    if kind == "tokens":
        ids = request.instead.tokens.token_ids
        if len(ids) > limits.max_cache_tokens:
            raise _refuse(
                "instead.tokens",
                f"has {len(ids)} tokens; this server takes at most {limits.max_cache_tokens}",
            )
        given = tuple(ids)
    elif kind == "text":
        given = _find_candidate(request, parent, tokenizer) or _encode(
            request.instead.text, "instead.text", tokenizer
        )
    else:
        raise _refuse("instead.continuation", "one of `text` or `tokens` must be set")
    if not given:
        raise _refuse(f"instead.{kind}", "must hold at least one token")
    return given


def edit_prompt(
    edits: pb.PromptEdits, prompt: tuple[int, ...], tokenizer: TextTokenizer
) -> list[int]:
    """Return a prompt with ranges of its tokens removed, replaced or masked.

    Raises:
        InvalidRequestError: ranges are empty, overlap or lie beyond the prompt.
    """
    if not 0 < len(edits.edits) <= _MAX_EDITS:
        raise _refuse("edits.edits", f"must be 1 to {_MAX_EDITS} changes, not {len(edits.edits)}")
    if sum(len(edit.text) for edit in edits.edits) > _MAX_TEXT:
        raise _refuse("edits.edits", f"may have at most {_MAX_TEXT} characters of text together")
    ids: list[int] = []
    done = 0
    for place, edit in sorted(enumerate(edits.edits), key=lambda pair: pair[1].begin):
        field = f"edits.edits[{place}]"
        if not edit.begin < edit.end <= len(prompt):
            raise _refuse(
                field,
                f"is the range from {edit.begin} to {edit.end}; it must have a token, and the "
                f"prompt has {len(prompt)}",
            )
        if edit.begin < done:
            raise _refuse(field, f"begins at {edit.begin}, inside of another change's range")
        ids += prompt[done : edit.begin]
        ids += _replace(edit, field, tokenizer)
        done = edit.end
    return [*ids, *prompt[done:]]


def _replace(edit: pb.PromptEdit, field: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    match edit.WhichOneof("replacement"):
        case "text":
            return _encode(edit.text, f"{field}.text", tokenizer)
        case "tokens":
            return tuple(edit.tokens.token_ids)
        case "mask_token_id":
            return (edit.mask_token_id,) * (edit.end - edit.begin)
        case _:
            return ()


def _find_candidate(
    request: pb.ForkGenerationRequest, parent: Parent, tokenizer: TextTokenizer
) -> tuple[int, ...]:
    """Return the candidate of the step with the given text, likeliest first; nothing for none.

    A text by itself may be divided into other tokens than within a text.
    """
    for token_id in parent.candidate_ids:
        if tokenizer.get_token_text(token_id) == request.instead.text:
            return (token_id,)
    return ()


def _encode(text: str, field: str, tokenizer: TextTokenizer) -> tuple[int, ...]:
    if len(text) > _MAX_TEXT:
        raise _refuse(field, f"has {len(text)} characters; at most {_MAX_TEXT} are taken")
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    except LoneSurrogateError as error:
        raise _refuse(field, str(error)) from error


def _refuse(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description))
