"""Link to a generation's trace in the user's trace viewer."""

import os
from urllib.parse import urlsplit

from whence.generation import GenerationState

TRACE_URL_VARIABLE = "WHENCE_TRACE_URL"
PLACE = "{trace_id}"
MEANING = (
    f"URL of a trace with {PLACE} in it, for example http://localhost:16686/trace/{PLACE} "
    f"(Jaeger); the summary ends with the link to the trace "
    f"(default: ${TRACE_URL_VARIABLE}, else no link)"
)

_SAMPLED = 1


def choose_template(text: str | None) -> str:
    """Return the template: the given one, else $WHENCE_TRACE_URL, else "" for no link.

    Raises:
        ValueError: the template is not an HTTP URL, or has no {trace_id}.
    """
    chosen, where = text, "the trace URL"
    if chosen is None:
        chosen, where = os.environ.get(TRACE_URL_VARIABLE, ""), f"${TRACE_URL_VARIABLE}"
    if not chosen:
        return ""
    if not _is_page(chosen.replace(PLACE, "0" * 32)):
        raise ValueError(f"{where} {chosen!r} is not http://HOST/... or https://HOST/...")
    if PLACE not in chosen:
        raise ValueError(f"{where} {chosen!r} does not say where the trace id goes: {PLACE}")
    return chosen


def make_trace_link(template: str, generation: GenerationState) -> str:
    """Return the link to a generation's trace; "" without a template or a sampled trace."""
    started = generation.started
    if not template or started is None or not started.trace_flags & _SAMPLED:
        return ""
    return template.replace(PLACE, started.trace_id)


def _is_page(text: str) -> bool:
    try:
        text.encode()  # other bytes than UTF-8 in the environment are lone surrogates
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and not set(text) & set(" \n")
    except ValueError:  # brackets that hold no address
        return False
