"""Conversion of the request of a branch, with its parent's record, to a request of a generation."""

from dataclasses import replace

from whence.v1 import generation_pb2 as pb
from whence_server.domain.chat import ChatRecord, OutputForms
from whence_server.domain.content import ContentPolicy
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.forking import ForkOrigin
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.parents import Parent, require_known_draws, require_same_model
from whence_server.rpc.chats import convert_arguments, convert_chat
from whence_server.rpc.conversions import convert_request
from whence_server.rpc.fork_decoding import merge_decoding, merge_trace
from whence_server.rpc.fork_prompts import edit_prompt, read_instead
from whence_server.rpc.request_digest import compute_digests
from whence_server.text.tokenizer import TextTokenizer


def make_branch_request(
    request: pb.ForkGenerationRequest,
    parent: Parent,
    *,
    model: ModelInfo,
    limits: Limits,
    tokenizer: TextTokenizer,
) -> GenerationRequest:
    """Return the request of a generation that is a branch.

    Args:
        request: request of the branch.
        parent: record of the parent; all steps of its sequence if it is forced.
        model: the served model.
        limits: limits of the server.
        tokenizer: the model's tokenizer.

    Raises:
        InvalidRequestError: the request is wrong; the error names the fields.
        ForkRefusedError: the parent's record lacks what the branch needs.
    """
    started = parent.started
    require_same_model(started, model)
    _check_place(request, parent)
    whole = _make_whole(request, parent, model, limits)
    if whole.decoding.HasField("sample"):
        require_known_draws(started, gives_seed=request.decoding.sample.HasField("seed"))
    _set_input(whole, request, parent, tokenizer)
    instead = read_instead(request, parent, limits, tokenizer)
    given = parent.get_token_ids(0, request.step) + instead
    is_forced = whole.decoding.HasField("forced")
    if is_forced:
        given += parent.get_token_ids(len(given), len(parent.token_ids))
        whole.decoding.forced.tokens.token_ids.extend(given)
    converted = convert_request(whole, limits)
    decoding = replace(
        converted.decoding,
        forced_prefix=() if is_forced else given,
        first_draw_sequence=started.fork.first_draw_sequence + request.sequence_index,
    )
    arguments = convert_arguments(request.chat, limits, [])
    return replace(
        converted,
        decoding=decoding,
        digest=compute_digests(request, arguments).digest,
        former_digest="",
        fork=_make_origin(request, parent, model, replaces=bool(instead)),
    )


def _make_whole(
    request: pb.ForkGenerationRequest, parent: Parent, model: ModelInfo, limits: Limits
) -> pb.GenerateRequest:
    """Return the request of a generation with the branch's settings, without an input."""
    started = parent.started
    whole = pb.GenerateRequest(
        generation_id=request.generation_id,
        labels=request.labels,
        adapter=started.adapter.name,
        decoding=merge_decoding(started.effective_decoding, request, model.defaults),
        trace=merge_trace(started, request.trace, limits.content),
    )
    for name in ("disconnect_grace", "max_duration"):
        if request.HasField(name):
            getattr(whole, name).CopyFrom(getattr(request, name))
    return whole


def _make_origin(
    request: pb.ForkGenerationRequest, parent: Parent, model: ModelInfo, *, replaces: bool
) -> ForkOrigin:
    started, step = parent.started, request.step
    has_step = replaces and step < len(parent.token_ids)
    return ForkOrigin(
        parent_generation_id=parent.id,
        sequence_index=request.sequence_index,
        step=step,
        replaced_token_id=parent.token_ids[step] if has_step else None,
        parent_trace_id=started.trace_id,
        parent_span_id=started.span_id,
        parent_decoding=started.effective_decoding.SerializeToString(),
        parent_configured=started.configured_decoding.SerializeToString(),
        keeps_lists=started.content in {0, ContentPolicy.FULL.value},
        changes_model=started.model_digest not in {"", model.model_digest},
        parent_prompt=started.prompt,
        parent_prompt_token_ids=tuple(started.prompt_token_ids),
        parent_chat=_read_chat(started),
    )


def _check_place(request: pb.ForkGenerationRequest, parent: Parent) -> None:
    decoding = parent.started.effective_decoding
    num_sequences = max(decoding.num_return_sequences, 1)
    if request.sequence_index >= num_sequences:
        raise InvalidRequestError(
            FieldViolation(
                "sequence_index",
                f"is {request.sequence_index}, and the parent has {num_sequences} sequences, "
                "counted from 0",
            )
        )
    num_steps = len(parent.token_ids)
    if request.step > num_steps:
        why = ""
        if not num_steps and decoding.HasField("beam_search"):
            why = "; a beam search has no sequences before its end"
        raise InvalidRequestError(
            FieldViolation(
                "step",
                f"is {request.step}, and sequence {request.sequence_index} has {num_steps} steps "
                f"on record{why}",
            )
        )


def _set_input(
    whole: pb.GenerateRequest,
    request: pb.ForkGenerationRequest,
    parent: Parent,
    tokenizer: TextTokenizer,
) -> None:
    """Set the prompt: the parent's token ids, or what the request gives in their place."""
    match request.WhichOneof("input"):
        case "prompt":
            whole.prompt = request.prompt
            if parent.started.HasField("chat") and not request.decoding.HasField(
                "add_special_tokens"
            ):
                # The chat template wrote the special tokens into the text.
                whole.decoding.add_special_tokens = False
        case "chat":
            whole.chat.CopyFrom(request.chat)
            if not request.decoding.HasField("add_special_tokens"):
                whole.decoding.ClearField("add_special_tokens")
        case "tokens":
            whole.tokens.CopyFrom(request.tokens)
        case "edits":
            ids = edit_prompt(request.edits, parent.get_prompt_token_ids(), tokenizer)
            whole.tokens.token_ids.extend(ids)
        case _:
            whole.tokens.token_ids.extend(parent.get_prompt_token_ids())


def _read_chat(started: pb.GenerationStarted) -> ChatRecord | None:
    """Return the parent's conversation; None if it has none, or it is not on record."""
    if not started.HasField("chat") or not started.chat.input.messages:
        return None
    chat = started.chat
    forms = OutputForms(chat.tool_call_format, chat.reasoning_format, chat.begins_in_reasoning)
    conversation = convert_chat(chat.input, "", Limits(), [])
    return ChatRecord(conversation, chat.template_name, forms, chat.template_digest)
