"""Grades of what whence's own engine shows, which sees every number that it computes."""

from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.engine import Admit
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.observation import (
    DrawOrigin,
    Observation,
    SecondDistribution,
    Seed,
)


class OwnGrader:
    """Grader of whence's own engine: what it draws is on record, and all weights are digested."""

    def grade(self, admission: Admit) -> Observation:
        """Return the grades of a generation.

        Raises:
            InvalidRequestError: the request has fields for an upstream.
        """
        if admission.upstream_parameters_json:
            raise InvalidRequestError(
                FieldViolation(
                    "upstream_parameters_json",
                    "must be empty: this server runs its own engine, not an upstream",
                )
            )
        return grade_own_engine(admission.decoding)


def grade_own_engine(decoding: Decoding) -> Observation:
    """Return the grades of a generation of whence's own engine."""
    draws = decoding.strategy is Strategy.SAMPLE
    chooses = decoding.strategy is not Strategy.FORCED
    return Observation(
        second_distribution=SecondDistribution.GIVEN if chooses else SecondDistribution.NONE,
        seed=Seed.OURS if draws else Seed.NONE,
        draw=DrawOrigin.OURS if draws else DrawOrigin.NONE,
    )
