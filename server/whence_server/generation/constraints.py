"""Checks of a request's constraint against its other settings, and what the front keeps of it."""

from functools import cache
from importlib.metadata import version

from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.limits import Limits
from whence_server.domain.model import ModelInfo
from whence_server.generation.checks import Faults

_FIELD = "decoding.constraint"


def check_constraint(faults: Faults, decoding: Decoding, model: ModelInfo, limits: Limits) -> None:
    """Note what does not go with a constraint; its text is compiled later, in a text process."""
    constraint = decoding.constraint
    if constraint is None or decoding.strategy is Strategy.FORCED:
        return
    num_bytes = len(constraint.text.encode("utf-8", "surrogatepass"))
    most = limits.max_constraint_bytes
    faults.expect(
        num_bytes <= most,
        constraint.field,
        f"has {num_bytes} bytes; this server takes at most {most}",
    )
    if model.upstream is not None:
        return  # it compiles the constraint, and knows its own tokens
    faults.expect(
        not decoding.ignore_eos,
        "decoding.ignore_eos",
        "does not go with `constraint`, whose text ends with the end-of-sequence token",
    )
    faults.expect(
        bool(decoding.eos_token_ids or decoding.stop_token_ids),
        _FIELD,
        f"needs a token that ends a complete text, and the generation config of {model.name} names "
        "no end-of-sequence token; name a special token in stop_token_ids",
    )
    faults.expect(
        not model.text.cleans_up_spaces,
        _FIELD,
        "does not go with this model, whose tokenizer removes spaces from decoded text",
    )
    configured = decoding.configured
    for name, forces in (
        ("forced_bos_token_id", configured.forced_bos_token_id is not None),
        ("forced_eos_token_id", bool(configured.forced_eos_token_ids)),
    ):
        faults.expect(
            not forces,
            _FIELD,
            f"does not go with {name} in the model's generation config, which chooses a token "
            "whatever the constraint allows",
        )


def strip_end(decoding: Decoding) -> tuple[int, ...]:
    """Return the tokens that are given before the first choice, without one that ends the text."""
    given = decoding.forced_token_ids
    ends = {*decoding.eos_token_ids, *decoding.stop_token_ids}
    return given[:-1] if given and given[-1] in ends else given


class JudgedText:
    """Places of one sequence's text at which the engine has said whether it is complete."""

    def __init__(self) -> None:
        self._complete: dict[int, bool] = {}

    def note(self, end_byte: int, complete: bool | None) -> None:
        """Keep whether the text is complete at the end of a token; None is not known."""
        if complete is not None:
            self._complete[end_byte] = complete

    def judge(self, text: str) -> bool | None:
        """Return whether the final text is complete.

        It is not known where a stop string begins inside a token.
        """
        return self._complete.get(len(text.encode()))


def get_constraint_engine(decoding: Decoding) -> str:
    """Return the library that applies the constraint, with its version; "" without one."""
    return "" if decoding.constraint is None else _name_engine()


@cache
def _name_engine() -> str:
    return f"llguidance/{version('llguidance')}"
