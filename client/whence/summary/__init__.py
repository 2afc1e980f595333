"""Lines that say in words what a record holds, for spans and for the command.

The functions are pure: they read messages of `whence.v1` and return text. The server and the client
both import them, because the same step reads the same in a tracing backend and on a terminal.

Names are imported at their first use: `whence verify-bundle` needs two of them, and starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whence.summary.beams import summarise_beam_round
    from whence.summary.forks import describe_fork, list_differences
    from whence.summary.likelihoods import (
        DEFAULT_UNLIKELY_BELOW,
        Likelihood,
        Likelihoods,
        UnlikelyToken,
        compute_unlikely_limit,
    )
    from whence.summary.names import (
        ID_PREFIX,
        MAX_CACHED_NAMES,
        MAX_NAME_CHARACTERS,
        TokenNames,
        make_text_names,
        name_by_id,
    )
    from whence.summary.numbers import count, shorten_float32
    from whence.summary.observations import describe_upstream, list_grades, summarise_grades
    from whence.summary.outputs import OutputPart, list_output_parts
    from whence.summary.quoting import decode_token, escape, quote, quote_briefly
    from whence.summary.statements import find_signer
    from whence.summary.steps import CONSTRAINT, FORCED, PROMPT, describe_choice, summarise_step
    from whence.summary.trainings import (
        summarise_attempt,
        summarise_checkpoint,
        summarise_epoch,
        summarise_evaluation,
        summarise_optimizer_step,
        summarise_run,
    )

__all__ = [
    "CONSTRAINT",
    "DEFAULT_UNLIKELY_BELOW",
    "FORCED",
    "ID_PREFIX",
    "MAX_CACHED_NAMES",
    "MAX_NAME_CHARACTERS",
    "PROMPT",
    "Likelihood",
    "Likelihoods",
    "OutputPart",
    "TokenNames",
    "UnlikelyToken",
    "compute_unlikely_limit",
    "count",
    "decode_token",
    "describe_choice",
    "describe_fork",
    "describe_upstream",
    "escape",
    "find_signer",
    "list_differences",
    "list_grades",
    "list_output_parts",
    "make_text_names",
    "name_by_id",
    "quote",
    "quote_briefly",
    "shorten_float32",
    "summarise_attempt",
    "summarise_beam_round",
    "summarise_checkpoint",
    "summarise_epoch",
    "summarise_evaluation",
    "summarise_grades",
    "summarise_optimizer_step",
    "summarise_run",
    "summarise_step",
]

_MODULES = {
    "summarise_beam_round": "beams",
    "describe_fork": "forks",
    "list_differences": "forks",
    "DEFAULT_UNLIKELY_BELOW": "likelihoods",
    "Likelihood": "likelihoods",
    "Likelihoods": "likelihoods",
    "UnlikelyToken": "likelihoods",
    "compute_unlikely_limit": "likelihoods",
    "ID_PREFIX": "names",
    "MAX_CACHED_NAMES": "names",
    "MAX_NAME_CHARACTERS": "names",
    "TokenNames": "names",
    "make_text_names": "names",
    "name_by_id": "names",
    "count": "numbers",
    "shorten_float32": "numbers",
    "describe_upstream": "observations",
    "list_grades": "observations",
    "summarise_grades": "observations",
    "OutputPart": "outputs",
    "list_output_parts": "outputs",
    "decode_token": "quoting",
    "escape": "quoting",
    "quote": "quoting",
    "quote_briefly": "quoting",
    "find_signer": "statements",
    "CONSTRAINT": "steps",
    "FORCED": "steps",
    "PROMPT": "steps",
    "describe_choice": "steps",
    "summarise_step": "steps",
    "summarise_attempt": "trainings",
    "summarise_checkpoint": "trainings",
    "summarise_epoch": "trainings",
    "summarise_evaluation": "trainings",
    "summarise_optimizer_step": "trainings",
    "summarise_run": "trainings",
}
"""Module of each public name."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"whence.summary.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
