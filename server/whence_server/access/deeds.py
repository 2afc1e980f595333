"""Deeds of callers: what an admitted call did, for the audit."""

from whence_server.access.scope_table import TABLE
from whence_server.domain.audit import Deed
from whence_server.domain.identity import Identity
from whence_server.domain.occurrences import Caller


def make_deed(
    caller: Caller,
    identity: Identity,
    time_ns: int,
    status_code: int,
    *,
    generation_id: str = "",
    detail: str = "",
    reason: str = "",
) -> Deed | None:
    """Return what a call did; None if the audit leaves its method out.

    Args:
        caller: the call.
        identity: its caller.
        time_ns: Unix time of its arrival.
        status_code: gRPC status code that it got.
        generation_id: id of the generation that it named or started.
        detail: id of the training run, or of a branch's parent, that it named, or its result in
            words.
        reason: reason that the caller gave.
    """
    rule = TABLE.get(caller.method)
    action = None if rule is None else rule.find_action(identity)
    if action is None:
        return None
    return Deed(
        action,
        time_ns,
        caller.method,
        identity.id,
        caller.address,
        generation_id,
        detail,
        reason,
        status_code,
        caller.trace_context.trace_id,
        caller.trace_context.span_id,
    )
