"""Options of the methods that take segments out, read from a request's options by name."""

from collections.abc import Mapping

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.explain.operators import Operator

MOST_ABLATIONS = 4096
DEFAULT_ABLATIONS = 64
"""The number that ContextCite takes."""


def read_operator(options: Mapping[str, object]) -> Operator:
    """Return the operator; removal if none is set.

    Raises:
        InvalidRequestError: there is no such operator.
    """
    name = options.get("operator")
    if name is None:
        return Operator.REMOVE
    if name not in set(Operator):
        raise InvalidRequestError(
            FieldViolation("options.operator", f"is {name!r}; it must be remove or hide")
        )
    return Operator(str(name))


def read_num_ablations(options: Mapping[str, object]) -> int:
    """Return the number of random ablations.

    Raises:
        InvalidRequestError: it is no number from 2 to `MOST_ABLATIONS`.
    """
    number = options.get("num_ablations")
    if number is None:
        return DEFAULT_ABLATIONS
    if not isinstance(number, int) or not 2 <= number <= MOST_ABLATIONS:
        raise InvalidRequestError(
            FieldViolation(
                "options.num_ablations",
                f"is {number!r}; it must be a number from 2 to {MOST_ABLATIONS}",
            )
        )
    return number


def read_seed(options: Mapping[str, object]) -> int:
    """Return the seed of the random ablations; 0 if none is set.

    Raises:
        InvalidRequestError: it is no number of 0 or more.
    """
    seed = options.get("seed")
    if seed is None:
        return 0
    if not isinstance(seed, int) or seed < 0:
        raise InvalidRequestError(
            FieldViolation("options.seed", f"is {seed!r}; it must be a number of 0 or more")
        )
    return seed
