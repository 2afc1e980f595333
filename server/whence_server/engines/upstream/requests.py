"""Admissions as requests to an upstream."""

import json

from whence_server.domain.chat import ChatInput
from whence_server.domain.decoding import TraceDetail
from whence_server.domain.engine import Admit
from whence_server.domain.observation import Distribution, Observation
from whence_server.domain.tracing import TraceContext
from whence_server.engines.upstream.exchange import UpstreamDescription, UpstreamRequest
from whence_server.engines.upstream.second import SecondComputer, find_computer


def make_request(admission: Admit, computer: SecondComputer | None) -> UpstreamRequest:
    """Return the request of an admission.

    Args:
        admission: the admission.
        computer: computer of the second distribution, which may need more candidates; None if it is
            not computed.
    """
    prompt = admission.prompt
    passed_on = json.loads(admission.upstream_parameters_json or "{}")
    wanted = admission.trace.num_candidates
    if admission.trace.detail is TraceDetail.TOKENS:
        wanted = 0
    elif computer is not None:
        wanted = max(wanted, computer.num_wanted)
    return UpstreamRequest(
        generation_id=admission.generation_id,
        prompt=tuple(admission.prompt_token_ids) if prompt is None else prompt,
        decoding=admission.decoding,
        num_candidates=wanted,
        trace_headers={}
        if admission.trace_context is None
        else make_trace_headers(admission.trace_context),
        passed_on=passed_on,
    )


def choose_computer(
    request: UpstreamRequest, grades: Observation, told: UpstreamDescription
) -> SecondComputer | None:
    """Return the computer of the second distribution; None if that cannot be computed."""
    if grades.distribution is not Distribution.RAW:
        return None
    computer = find_computer(
        request.decoding, told.processor_order, has_passed_on=bool(request.passed_on)
    )
    most = told.count_candidates(is_chat=isinstance(request.prompt, ChatInput))
    if computer is None or computer.num_wanted > most:
        return None
    return computer


def make_trace_headers(context: TraceContext) -> dict[str, str]:
    """Return the headers under which an upstream's spans hang below the request's."""
    flags = context.trace_flags & 0xFF
    headers = {"traceparent": f"00-{context.trace_id}-{context.span_id}-{flags:02x}"}
    if context.trace_state:
        headers["tracestate"] = context.trace_state
    return headers
