"""Errors of constraints."""


class ConstraintError(Exception):
    """A constraint cannot be used.

    Attributes:
        message: the fault and its position; it begins with a verb, whose subject is the constraint.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
