"""Comparison of a branch's record with that of its parent, where that is at hand."""

from collections.abc import Iterator

from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.verification_pb2 import GenerationRecord
from whence_server.domain.content import ContentPolicy
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.domain.identity import Identity, Scope
from whence_server.generation.branches import compare_messages
from whence_server.generation.parents import Parent, read_parent
from whence_server.journal.journal import Journal
from whence_server.rpc.visibility import require_access

_SETTINGS = "decoding."


async def find_parent(
    journal: Journal, started: GenerationStarted, identity: Identity
) -> Parent | None:
    """Return the record of a branch's parent; None if there is none that the caller may see.

    Args:
        journal: the records.
        started: start of the branch, or of a generation that is none.
        identity: the caller.
    """
    if not started.HasField("fork"):
        return None
    fork = started.fork
    try:
        await require_access(journal, fork.parent_generation_id, identity, Scope.READ_ALL)
        return await read_parent(journal, fork.parent_generation_id, fork.sequence_index, fork.step)
    except (GenerationNotFoundError, RecordDamagedError):
        return None


def list_differences(record: GenerationRecord, parent: Parent) -> Iterator[str]:
    """Yield what a branch says of its parent and the parent's record does not, in words."""
    ours, theirs, fork = record.started, parent.started, record.started.fork
    prompts = [list(it.prompt_token_ids) for it in (ours, theirs)]
    if not fork.changes_prompt and all(prompts) and prompts[0] != prompts[1]:
        yield "its prompt is not its parent's, and the record says that it is"
    if len(parent.token_ids) < fork.step:
        yield f"it repeats {fork.step} tokens, and its parent has {len(parent.token_ids)}"
    for step in record.steps:
        if step.index < min(fork.step, len(parent.token_ids)) and parent.token_ids[
            step.index
        ] not in {None, step.token_id}:
            yield f"token {step.sequence_index}.{step.index} is not its parent's"
            break
    draws = theirs.fork.first_draw_sequence + fork.sequence_index
    if fork.first_draw_sequence != draws:
        yield (
            f"its draws are those of sequence {fork.first_draw_sequence}, and its parent's are "
            f"those of sequence {draws}"
        )
    # Other policies keep some of the settings out of the record.
    if {ours.content, theirs.content} <= {0, ContentPolicy.FULL.value}:
        found, _ = compare_messages(theirs.effective_decoding, ours.effective_decoding)
        told = {path for path in fork.changed_settings if path.startswith(_SETTINGS)}
        if told != set(found):
            names = ", ".join(sorted(told ^ set(found)))
            yield f"the settings that differ from its parent's are not those on record: {names}"
