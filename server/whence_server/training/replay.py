"""The strong proof: trains again between two checkpoints, and compares every tensor."""

from whence_server.domain.errors import ConfigurationError
from whence_server.training.findings import Report


def replay(report: Report, first_step: int, last_step: int) -> None:
    """Retrains and adds what differs to the report.

    Raises:
        ConfigurationError: it cannot be made.
    """
    raise ConfigurationError(
        f"{report.directory}: steps {first_step} to {last_step} cannot be trained again: this "
        "version has no recipes yet"
    )
