"""Grades of a generation's record, and its upstream, as attributes of its span."""

from whence.summary import list_grades
from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names

_GRADES = {
    "token_ids": names.OBSERVATION_TOKEN_IDS,
    "distribution": names.OBSERVATION_DISTRIBUTION,
    "second_distribution": names.OBSERVATION_SECOND_DISTRIBUTION,
    "seed": names.OBSERVATION_SEED,
    "draw": names.OBSERVATION_DRAW,
    "tables": names.OBSERVATION_TABLES,
    "weights": names.OBSERVATION_WEIGHTS,
}


def make_observation_attributes(
    started: GenerationStarted, finished: GenerationFinished
) -> dict[str, AttributeValue | None]:
    """Return the grades and the upstream; None marks an absent one."""
    attributes: dict[str, AttributeValue | None] = {
        _GRADES[field]: grade
        for field, grade in list_grades(started.observation).items()
        if field in _GRADES
    }
    if started.HasField("upstream"):
        upstream = started.upstream
        attributes |= {
            names.UPSTREAM_KIND: upstream.kind,
            names.UPSTREAM_VERSION: upstream.version or None,
            names.UPSTREAM_URL: upstream.url,
            names.UPSTREAM_MODEL: finished.upstream.model or upstream.model,
            names.UPSTREAM_FINGERPRINT: finished.upstream.fingerprint or None,
        }
    return attributes
