"""Preparation of a request before it starts: prompt text, token ids and settings.

The functions do no I/O. The front prepares short requests itself, and the text process all others.
"""

from typing import NamedTuple

from whence_server.domain.chat import ChatInput, ChatRecord, OutputForms
from whence_server.domain.decoding import (
    Decoding,
    TokenInput,
    TraceDetail,
    TraceOptions,
)
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.adapters import adapt_model
from whence_server.generation.checks import check_prompt, check_text_size, compute_longest_prompt
from whence_server.generation.constraints import strip_end
from whence_server.generation.resolve import get_source_method, resolve_decoding, resolve_trace
from whence_server.text.chat import RenderedChat
from whence_server.text.template_arguments import read_arguments, read_tools
from whence_server.text.tokenizer import TextEncoder
from whence_server.text.unicode import LoneSurrogateError


class Prepared(NamedTuple):
    """A prepared request.

    Attributes:
        prompt: as given, or as the chat template rendered it.
        token_ids: token ids of the prompt.
        decoding: as applied.
        trace: as granted.
        unavailable: requested parts of the trace that are not available, each with the reason.
        source_method: method that computes sources; empty if none are recorded.
        template_name: name of the chat template; "" for a request without a conversation.
        forms: forms in which the output is to be read; None for a request without a conversation.
        template_digest: SHA-256 of the chat template's source, in hex; "" without one.
        sent: text or conversation that an upstream is sent; None if it is sent `token_ids`.
    """

    prompt: str
    token_ids: list[int]
    decoding: Decoding
    trace: TraceOptions
    unavailable: dict[str, str]
    source_method: str = ""
    template_name: str = ""
    forms: OutputForms | None = None
    template_digest: str = ""
    sent: str | ChatInput | None = None

    @property
    def has_internals(self) -> bool:
        """True if the trace has internals."""
        return self.trace.detail is TraceDetail.INTERNALS

    def make_chat_record(self, request: GenerationRequest) -> ChatRecord | None:
        """Return the record of the request's conversation; None if it has none."""
        if self.forms is None or not isinstance(request.input, ChatInput):
            return None
        return ChatRecord(request.input, self.template_name, self.forms, self.template_digest)


INLINE_BYTES = 4_000
"""Size up to which the front prepares a request itself, in about 1 ms."""

SHORT_BYTES = 64 << 10
"""Size up to which a request may overtake long ones; it is tokenized in about 50 ms."""


def is_quick(request: GenerationRequest) -> bool:
    """Return whether preparing a request takes about a millisecond at most.

    Chats are never quick: a chat template is the model's code, and may run long on any message.
    Constraints are never quick either: one is compiled to check it.
    """
    return (
        request.size_bytes <= INLINE_BYTES
        and not isinstance(request.input, ChatInput)
        and request.decoding.constraint is None
    )


def name_input_field(request: GenerationRequest) -> str:
    """Return the name of the request's input field."""
    if isinstance(request.input, str):
        return "prompt"
    return "chat" if isinstance(request.input, ChatInput) else "tokens"


def check_size(
    request: GenerationRequest, *, model: ModelInfo, limits: Limits, tokenizer: TextEncoder
) -> None:
    """Refuse a request whose text is too long under any tokenization.

    Raises:
        InvalidRequestError: the prompt or the forced text cannot fit.
    """
    longest = compute_longest_prompt(model, limits)
    bound = tokenizer.bound
    if isinstance(request.input, str):
        check_text_size(request.input, "prompt", longest, bound, what="this server takes")
    elif isinstance(request.input, TokenInput) and len(request.input.token_ids) > longest:
        check_prompt(request.input.token_ids, "tokens.token_ids", model, limits)
    if isinstance(request.decoding.forced, str):
        room = model.max_context_length
        field, what = "decoding.forced.text", "the context holds"
        check_text_size(request.decoding.forced, field, room, bound, what=what)


def prepare_request(
    request: GenerationRequest, *, model: ModelInfo, limits: Limits, tokenizer: TextEncoder
) -> Prepared:
    """Check a request against the model, tokenize it and fill in defaults.

    Raises:
        InvalidRequestError: the request is invalid for this model and server.
        NotOfferedError: the server does not implement a part of the request.
    """
    model = adapt_model(model, request.adapter)
    check_size(request, model=model, limits=limits, tokenizer=tokenizer)
    trace, unavailable = resolve_trace(request.trace, model, limits)
    rendered, token_ids = encode_input(request, model, limits, tokenizer)
    decoding = resolve_decoding(
        request.decoding,
        num_prompt_tokens=len(token_ids),
        model=model,
        limits=limits,
        tokenizer=tokenizer,
    )
    source_method = get_source_method(trace, model)
    if decoding.constraint is not None:
        given = strip_end(decoding)
        tokenizer.check_constraint(decoding.constraint, model.vocabulary_size, given)
    if isinstance(rendered, str):
        return Prepared(rendered, token_ids, decoding, trace, unavailable, source_method)
    return Prepared(
        rendered.text,
        token_ids,
        decoding,
        trace,
        unavailable,
        source_method,
        rendered.template_name,
        rendered.forms,
        rendered.template_digest,
    )


def encode_input(
    request: GenerationRequest, model: ModelInfo, limits: Limits, tokenizer: TextEncoder
) -> tuple[str | RenderedChat, list[int]]:
    """Return the prompt's text, with what a chat template made it of, and its token ids.

    Raises:
        InvalidRequestError: the model cannot read the input.
    """
    given = request.input
    if isinstance(given, TokenInput):
        ids = list(given.token_ids)
        check_prompt(ids, "tokens.token_ids", model, limits)
        return tokenizer.decode(ids), ids
    add_special_tokens = request.decoding.add_special_tokens
    field = name_input_field(request)
    rendered: str | RenderedChat
    try:
        if isinstance(given, str):
            rendered = text = given
            adding = add_special_tokens is not False
        else:
            _refuse_special_tokens(add_special_tokens)
            arguments = read_arguments(given.template_arguments_json)
            tools = read_tools(given.tools_json)
            rendered = tokenizer.render_chat(given.messages, arguments, given.template_name, tools)
            text = rendered.text
            adding = False
            longest = compute_longest_prompt(model, limits)
            check_text_size(text, field, longest, tokenizer.bound, what="this server takes")
        ids = tokenizer.encode(text, add_special_tokens=adding)
    except LoneSurrogateError as error:
        raise InvalidRequestError(FieldViolation(field, str(error))) from error
    check_prompt(ids, field, model, limits)
    return rendered, ids


def _refuse_special_tokens(add_special_tokens: bool | None) -> None:
    if add_special_tokens:
        raise InvalidRequestError(
            FieldViolation(
                "decoding.add_special_tokens",
                "does not go with `chat`: the chat template adds the special tokens",
            )
        )
