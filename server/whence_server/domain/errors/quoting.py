"""Failures whose message may quote the caller's content."""


def may_quote_content(reason: str, *, recorded: bool = False) -> bool:
    """Return whether a failure's message may quote a prompt or an output.

    An upstream repeats the request in its refusals, and the message of a recorded generation comes
    from another process. Logs, calls on record, and spans without content then have code and reason
    alone.

    Args:
        reason: reason of the failure.
        recorded: True if another process recorded the generation.
    """
    return recorded or reason.startswith("UPSTREAM_")
