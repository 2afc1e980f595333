"""Grades of generations that other processes record."""

from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.observation import DrawOrigin, Observation, Seed, WeightsOrigin


def grade(decoding: Decoding) -> Observation:
    """Return the grades of a generation with these settings."""
    draws = decoding.strategy is Strategy.SAMPLE
    return Observation(
        # torch's generator draws, and its state is not on record.
        seed=Seed.UNKNOWN if draws else Seed.NONE,
        draw=DrawOrigin.ENGINE if draws else DrawOrigin.NONE,
        # This server has not seen what computed the tokens.
        weights=WeightsOrigin.CLAIMED,
    )
