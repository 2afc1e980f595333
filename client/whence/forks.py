"""Requests of branches: a recorded generation with something changed."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from whence.arguments import convert_seconds, convert_token_ids, name_errors, require_text
from whence.backoff import Backoff, RetryPolicy
from whence.constraints import refuse_contradicting
from whence.options import GenerateOptions, Prompt
from whence.requests import (
    DEFAULT_DISCONNECT_GRACE_S,
    make_options_request,
    refuse_unknown,
    set_input,
    set_labels,
)
from whence.resume import GenerationStream
from whence.v1 import generation_pb2 as pb

_OF_PARENT = {"model", "adapter", "upstream_parameters"}
_OF_CHAT = ("messages", "tools", "continue_final_message", "template_arguments", "template_name")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEdit:
    """A change of one range of a prompt's tokens; without a replacement, their removal."""

    begin: int
    """First token of the range, by its position in the prompt."""
    end: int
    """Position after its last token."""
    text: str | None = None
    """Text in the range's place."""
    token_ids: Sequence[int] | None = None
    """Token ids in the range's place."""
    mask_token_id: int | None = None
    """Token in the place of each token of the range."""


class ForkOptions(GenerateOptions, total=False):
    """Keyword arguments of `fork`: those of `generate`, and those of the branch.

    What is left out is as in the parent: prompt, settings, seed, trace.
    """

    step: int | None
    """Number of the parent's tokens that are repeated; default: 0."""
    sequence: int | None
    """Sequence of the parent that is repeated; default: 0."""
    instead: Prompt | None
    """Text, or token ids, in the place of the parent's token at `step`, and of those after it."""
    prompt: Prompt | None
    """Another prompt: text, or token ids; or give `messages`."""
    edits: Sequence[PromptEdit] | None
    """Changes of the parent's prompt."""
    reset: Sequence[str] | None
    """Fields of the contract's `Decoding` that have the model's defaults, and not the parent's
    values: "constraint", "stop", ..."""


def open_branch(
    parent: str | UUID, options: ForkOptions, policy: RetryPolicy
) -> tuple[GenerationStream, Mapping[str, str]]:
    """Return the stream of a call of `fork`, and the metadata of its calls.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a value that the wire cannot carry, or options that contradict.
    """
    request = fork_request(parent, options)
    stream = GenerationStream(request, Backoff(policy), timeout_s=options.get("timeout_s"))
    return stream, options.get("metadata") or {}


def fork_request(parent: str | UUID, options: ForkOptions) -> pb.ForkGenerationRequest:
    """Return the request of a call of `fork`, with a generation id.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a value that the wire cannot carry, or options that contradict.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    known = (ForkOptions.__annotations__.keys() | GenerateOptions.__annotations__) - _OF_PARENT
    refuse_unknown(given, dict.fromkeys(known))
    if "forced" in given:
        raise ValueError("`forced` does not go with a branch: give the tokens as `instead`")
    refuse_contradicting(given)
    request = pb.ForkGenerationRequest(
        parent_generation_id=require_text("parent", str(parent)),
        generation_id=require_text("generation_id", str(given.get("generation_id", uuid.uuid4()))),
        reset_decoding=[require_text("reset", name) for name in given.get("reset", ())],
    )
    with name_errors("step"):
        request.step = given.get("step", 0)
    with name_errors("sequence"):
        request.sequence_index = given.get("sequence", 0)
    _set_instead(request, given.get("instead"))
    _set_prompt(request, given)
    asked = make_options_request(given)
    if asked.decoding.ListFields():
        request.decoding.CopyFrom(asked.decoding)
    if asked.trace.ListFields():
        request.trace.CopyFrom(asked.trace)
    set_labels(request.labels, given)
    grace = given.get("disconnect_grace_s", DEFAULT_DISCONNECT_GRACE_S)
    request.disconnect_grace.CopyFrom(convert_seconds("disconnect_grace_s", grace))
    if "max_duration_s" in given:
        longest = convert_seconds("max_duration_s", given["max_duration_s"])
        request.max_duration.CopyFrom(longest)
    return request


def _set_instead(request: pb.ForkGenerationRequest, instead: Prompt | None) -> None:
    if isinstance(instead, str):
        request.instead.text = require_text("instead", instead)
    elif instead is not None:
        request.instead.tokens.CopyFrom(convert_token_ids("instead", instead))


def _set_prompt(request: pb.ForkGenerationRequest, given: dict[str, Any]) -> None:
    edits = given.get("edits", ())
    is_other = any(name in given for name in ("prompt", *_OF_CHAT))
    if is_other and edits:
        raise TypeError("`edits` change the parent's prompt: give them, or another prompt")
    for edit in edits:
        _add_edit(request.edits.edits.add(), edit)
    if not is_other:
        return
    asked = pb.GenerateRequest()
    set_input(asked, given.get("prompt"), given)
    kind = asked.WhichOneof("input")
    if kind == "prompt":
        request.prompt = asked.prompt
    elif kind == "chat":
        request.chat.CopyFrom(asked.chat)
    else:
        request.tokens.CopyFrom(asked.tokens)


def _add_edit(message: pb.PromptEdit, edit: PromptEdit) -> None:
    given = [edit.text, edit.token_ids, edit.mask_token_id]
    if sum(value is not None for value in given) > 1:
        raise ValueError("a PromptEdit takes one of `text`, `token_ids` and `mask_token_id`")
    with name_errors("edits"):
        message.begin, message.end = edit.begin, edit.end
        if edit.mask_token_id is not None:
            message.mask_token_id = edit.mask_token_id
    if edit.text is not None:
        message.text = require_text("edits", edit.text)
    if edit.token_ids is not None:
        message.tokens.CopyFrom(convert_token_ids("edits", edit.token_ids))
