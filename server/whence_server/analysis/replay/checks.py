"""Making of checks."""

from whence.v1 import verification_pb2 as pb

_SAME = pb.VERIFICATION_OUTCOME_SAME
_DIFFERENT = pb.VERIFICATION_OUTCOME_DIFFERENT
_NOT_CHECKED = pb.VERIFICATION_OUTCOME_NOT_CHECKED


def make_check(
    subject: pb.VerificationSubject.ValueType,
    *,
    same: bool | None,
    message: str = "",
    recorded: str = "",
    found: str = "",
) -> pb.VerificationCheck:
    """Return a check; `same` is None if it could not be made."""
    outcome = _NOT_CHECKED if same is None else _SAME if same else _DIFFERENT
    return pb.VerificationCheck(
        subject=subject, outcome=outcome, message=message, recorded=recorded, found=found
    )
