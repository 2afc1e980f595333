"""Everything about a request that has to be known before it can start: text, ids, settings.

Pure and without I/O, so that large requests can be prepared in a thread.
"""

from typing import NamedTuple

from whence_server.domain.decoding import Decoding, TraceOptions
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import GenerationRequest, TokenInput
from whence_server.generation.checks import check_prompt
from whence_server.generation.resolve import resolve_decoding, resolve_trace
from whence_server.text.template_arguments import read_arguments
from whence_server.text.tokenizer import TextTokenizer
from whence_server.text.unicode import LoneSurrogateError


class Prepared(NamedTuple):
    """A request that can start.

    Attributes:
        prompt: as given, or as the chat template made it.
        token_ids: the prompt's.
        decoding: as really applied.
        trace: as granted.
        unavailable: parts of the trace that were asked for and cannot be given, and why.
    """

    prompt: str
    token_ids: list[int]
    decoding: Decoding
    trace: TraceOptions
    unavailable: dict[str, str]


def prepared(
    request: GenerationRequest, *, model: ModelInfo, limits: Limits, tokenizer: TextTokenizer
) -> Prepared:
    """Holds a request against the model.

    Raises:
        InvalidRequestError: it can never be served as it is.
        NotOfferedError: it asks for what this server does not do.
    """
    trace, unavailable = resolve_trace(request.trace, model, limits)
    prompt, token_ids = _encoded(request, model, limits, tokenizer)
    decoding = resolve_decoding(
        request.decoding,
        num_prompt_tokens=len(token_ids),
        model=model,
        limits=limits,
        tokenizer=tokenizer,
    )
    return Prepared(prompt, token_ids, decoding, trace, unavailable)


def _encoded(
    request: GenerationRequest, model: ModelInfo, limits: Limits, tokenizer: TextTokenizer
) -> tuple[str, list[int]]:
    given = request.input
    if isinstance(given, TokenInput):
        ids = list(given.token_ids)
        check_prompt(ids, "tokens.token_ids", model, limits)
        return tokenizer.decode(ids), ids
    add_special_tokens = request.decoding.add_special_tokens
    field = "prompt" if isinstance(given, str) else "chat"
    try:
        if isinstance(given, str):
            text, adding = given, add_special_tokens is not False
        else:
            _refuse_special_tokens(add_special_tokens)
            arguments = read_arguments(given.template_arguments_json)
            text = tokenizer.render_chat(given.messages, arguments, given.template_name)
            adding = False
        ids = tokenizer.encode(text, add_special_tokens=adding)
    except LoneSurrogateError as error:
        raise InvalidRequestError(FieldViolation(field, str(error))) from error
    check_prompt(ids, field, model, limits)
    return text, ids


def _refuse_special_tokens(add_special_tokens: bool | None) -> None:
    if add_special_tokens:
        raise InvalidRequestError(
            FieldViolation(
                "decoding.add_special_tokens",
                "does not go with `chat`: the chat template adds the special tokens",
            )
        )
