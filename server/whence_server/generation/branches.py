"""Start of a branch: what differs from its parent, and what it takes over."""

from typing import Any, NamedTuple

from google.protobuf.message import Message

from whence.v1.generation_pb2 import ConfiguredDecoding
from whence.v1.generation_pb2 import Decoding as DecodingMessage
from whence_server.domain.chat import ChatRecord
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.forking import Branch
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.prepare import Prepared
from whence_server.journal.codec import convert_configured, convert_decoding

_PREFIX, _CONFIGURED, _MODEL = "decoding", "configured_decoding", "model_digest"


class Inherited(NamedTuple):
    """Parts of a start that a branch may have from its parent.

    Attributes:
        prompt: text of the prompt.
        chat: the conversation; None without one.
        branch: difference from the parent; None for a generation that is no branch.
    """

    prompt: str
    chat: ChatRecord | None
    branch: Branch | None = None


def inherit(request: GenerationRequest, ready: Prepared) -> Inherited:
    """Return prompt, conversation and origin of a generation that is to start."""
    chat = ready.make_chat_record(request)
    origin = request.fork
    if origin is None:
        return Inherited(ready.prompt, chat)
    changes_prompt = tuple(ready.token_ids) != origin.parent_prompt_token_ids
    if not changes_prompt:
        # The text of ids may be another than the one that they were made of.
        prompt, chat = origin.parent_prompt or ready.prompt, chat or origin.parent_chat
    else:
        prompt = ready.prompt
    paths, theirs = compare_settings(origin.parent_decoding, ready.decoding)
    decoding = ready.decoding
    paths += compare_configured(origin.parent_configured, decoding, keeps_lists=origin.keeps_lists)
    if origin.changes_model:
        paths += (_MODEL,)
    branch = Branch(
        origin=origin,
        num_forced_steps=len(decoding.forced_token_ids),
        first_draw_sequence=decoding.first_draw_sequence,
        changes_prompt=changes_prompt,
        changed_settings=tuple(sorted(paths)),
        parent_decoding=theirs,
    )
    return Inherited(prompt, chat, branch)


def compare_settings(parent: bytes, decoding: Decoding) -> tuple[tuple[str, ...], bytes]:
    """Compare effective settings with those of a parent.

    Args:
        parent: the parent's, as a serialised whence.v1.Decoding.
        decoding: those of the branch.

    Returns:
        The paths that differ, sorted, and the parent's values of them alone, serialised.
    """
    return compare_messages(DecodingMessage.FromString(parent), convert_decoding(decoding))


def compare_messages(
    parent: DecodingMessage, branch: DecodingMessage
) -> tuple[tuple[str, ...], bytes]:
    """Compare effective settings as they are on record; returns what `compare_settings` does."""
    theirs, ours = DecodingMessage(), DecodingMessage()
    theirs.CopyFrom(parent)
    ours.CopyFrom(branch)
    for message in (theirs, ours):
        if message.WhichOneof("strategy") == Strategy.FORCED.value:
            # The steps have the tokens.
            message.forced.Clear()
    paths = sorted(_keep_differences(theirs, ours, _PREFIX))
    return tuple(paths), theirs.SerializeToString()


def compare_configured(parent: bytes, decoding: Decoding, *, keeps_lists: bool) -> tuple[str, ...]:
    """Compare the settings of the model's generation config with those that a parent had.

    Args:
        parent: the parent's, as a serialised whence.v1.ConfiguredDecoding.
        decoding: the settings of the branch.
        keeps_lists: False if the parent's record may lack lists that it had.

    Returns:
        The paths that differ, sorted.
    """
    theirs = ConfiguredDecoding.FromString(parent)
    ours = convert_configured(decoding) or ConfiguredDecoding()
    if not keeps_lists:
        for field in theirs.DESCRIPTOR.fields:
            if field.is_repeated and not getattr(theirs, field.name):
                ours.ClearField(field.name)  # type: ignore[arg-type]  # one of its fields
    return tuple(sorted(_keep_differences(theirs, ours, _CONFIGURED)))


def _keep_differences(theirs: Message, ours: Message, path: str) -> list[str]:
    """Clear the fields that are equal in two messages; return the paths of the others."""
    paths: list[str] = []
    for field in theirs.DESCRIPTOR.fields:
        name = field.name
        place = f"{path}.{name}"
        if _is_message(field) and theirs.HasField(name) and ours.HasField(name):
            found = _keep_differences(getattr(theirs, name), getattr(ours, name), place)
            if not found:
                theirs.ClearField(name)
            paths += found
        elif _is_equal(field, theirs, ours):
            theirs.ClearField(name)
        else:
            paths.append(place)
    return paths


def _is_message(field: Any) -> bool:
    return field.message_type is not None and not field.is_repeated


def _is_equal(field: Any, theirs: Message, ours: Message) -> bool:
    if field.has_presence and theirs.HasField(field.name) != ours.HasField(field.name):
        return False
    if _is_message(field):
        return not theirs.HasField(field.name)
    return bool(getattr(theirs, field.name) == getattr(ours, field.name))
