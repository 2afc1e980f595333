"""The start of a generation, from its prepared request."""

from whence_server.domain.engine import Admit, Grader
from whence_server.domain.generation import Started
from whence_server.domain.model import ModelInfo
from whence_server.domain.processors import list_processor_names
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.adapters import adapt_model, find_adapter
from whence_server.generation.arrival import Arrival
from whence_server.generation.branches import inherit
from whence_server.generation.constraints import get_constraint_engine
from whence_server.generation.prepare import Prepared
from whence_server.journal.rows import PREVIEW_CHARACTERS, GenerationIndex


def make_started(
    generation_id: str,
    request: GenerationRequest,
    ready: Prepared,
    *,
    arrival: Arrival,
    model: ModelInfo,
    grader: Grader,
) -> Started:
    """Return the start of a generation.

    Args:
        generation_id: its id.
        request: the request.
        ready: the prepared request.
        arrival: arrival of the call.
        model: the served model.
        grader: grader of what the engine shows.

    Raises:
        InvalidRequestError, NotOfferedError: the engine does not take the request.
    """
    # An upstream applies processors and constraints in its own way, and does not show them.
    is_own = model.upstream is None
    inherited = inherit(request, ready)
    return Started(
        observation=grader.grade(
            Admit(
                generation_id,
                ready.token_ids,
                ready.decoding,
                ready.trace,
                prompt=ready.sent,
                upstream_parameters_json=request.upstream_parameters_json,
            )
        ),
        upstream_parameters_json=request.upstream_parameters_json,
        generation_id=generation_id,
        trace_context=arrival.trace_context,
        start_time_ns=arrival.time_ns,
        model=adapt_model(model, request.adapter, has_internals=ready.has_internals),
        prompt=inherited.prompt,
        prompt_token_ids=tuple(ready.token_ids),
        decoding=ready.decoding,
        trace=ready.trace,
        processor_names=list_processor_names(ready.decoding) if is_own else (),
        request_digest=request.digest,
        labels=dict(request.labels),
        unavailable=ready.unavailable,
        source_method=ready.source_method,
        adapter=find_adapter(model, request.adapter),
        constraint_engine=get_constraint_engine(ready.decoding) if is_own else "",
        chat=inherited.chat,
        owner=arrival.caller_id,
        branch=inherited.branch,
    )


def make_index(started: Started, model_name: str) -> GenerationIndex:
    """Return the searchable columns of a generation that starts."""
    branch = started.branch
    return GenerationIndex(
        generation_id=started.generation_id,
        trace_id=started.trace_context.trace_id,
        model=model_name,
        start_time_ns=started.start_time_ns,
        request_digest=started.request_digest,
        labels=started.labels,
        prompt_preview=started.prompt[:PREVIEW_CHARACTERS],
        num_prompt_tokens=len(started.prompt_token_ids),
        owner=started.owner,
        parent="" if branch is None else branch.origin.parent_generation_id,
    )
