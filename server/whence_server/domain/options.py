"""Declaration of a request's options, from which the other parts read what they need.

An option is a field of `Decoding` or of `TraceOptions` that carries an `Option` in its annotation.
Conversions from the contract, defaults, checks and the journal's encoding go through the tables
that `list_declared_options` makes of these fields: a new option is declared once.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_type_hints

from whence_server.domain.limits import Limits


class Kind(Enum):
    """Form of an option's value in the contract and in the domain."""

    SCALAR = 1
    """A number or a switch."""
    LIST = 2
    """Repeated in the contract, a tuple in the domain."""
    MAP = 3
    """A map in the contract, a tuple of pairs in the domain."""
    CHOICE = 4
    """An enum: members of the domain's have the contract's numbers; 0 is unset."""
    CONSTRAINT = 5
    """A message of its own in the contract, `constraints.Constraint` in the domain."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Values that an option takes.

    Attributes:
        allows: whether a value is one of them.
        text: completes "must be ...".
        hint: ends the message, after the value that was given.
        is_float: True refuses whole numbers but 1. Requests carry floats; a whole number comes from
            a generation config, and transformers' `generate` fails at it.
    """

    allows: Callable[[Any], bool]
    text: str
    hint: str = ""
    is_float: bool = False

    def find_fault(self, value: Any) -> str:
        """Return what the value must be; "" if the rule allows it."""
        if self.is_float and isinstance(value, int) and value != 1:
            return f"must be written with a decimal point ({value}.0), not {value}"
        if self.allows(value):
            return ""
        return f"must be {self.text}, not {value:g}{self.hint}"


@dataclass(frozen=True, slots=True)
class Entries:
    """Bounds of an option that holds several values.

    Attributes:
        limit: field of `Limits` with the largest number of them.
        noun: the entries in words, plural.
        are_token_ids: each must be in the model's vocabulary.
        are_distinct: none may occur twice.
    """

    limit: str
    noun: str
    are_token_ids: bool = False
    are_distinct: bool = False

    def get_most(self, limits: Limits) -> int:
        """Return the largest number of them."""
        most: int = getattr(limits, self.limit)
        return most


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a request.

    Attributes:
        message: path of the contract's message that holds it, from `GenerateRequest`.
        kind: form of its value.
        rule: values that it takes; None for any that the contract can carry, or for checks of its
            own in `generation`.
        entries: bounds of a list or map.
        configured_for: strategies for which the model's generation config sets what is unset.
        shapes_choice: refused for a forced continuation, which leaves nothing to choose.
        name: of its field in the contract and in the domain; filled in by `list_declared_options`.
        neutral: value where the strategy does not use it; filled in likewise.
    """

    message: str = "decoding"
    kind: Kind = Kind.SCALAR
    rule: Rule | None = None
    entries: Entries | None = None
    configured_for: frozenset[Enum] = frozenset()
    shapes_choice: bool = False
    name: str = ""
    neutral: Any = None

    @property
    def path(self) -> str:
        """Its field's path from `GenerateRequest`, as errors name it."""
        return f"{self.message}.{self.name}"

    @property
    def strategy_name(self) -> str:
        """The only strategy that uses it, by its name in the contract; "" for any."""
        return self.message.partition(".")[2]


def list_declared_options(declaration: type) -> tuple[Option, ...]:
    """Return the options among a dataclass's fields, in their order."""
    hints = get_type_hints(declaration, include_extras=True)
    return tuple(
        dataclasses.replace(option, name=field.name, neutral=field.default)
        for field in dataclasses.fields(declaration)
        for option in getattr(hints[field.name], "__metadata__", ())
    )
