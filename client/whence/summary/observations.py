"""Grades of a record in words: how each part of it was obtained."""

from google.protobuf.descriptor import FieldDescriptor

from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.model_pb2 import UpstreamInfo
from whence.v1.observation_pb2 import Observation


def list_grades(observation: Observation) -> dict[str, str]:
    """Return the grade of each part by its field, as "raw" or "digests_of_claimed_files".

    A grade that this version does not know is its number.
    """
    return {field.name: _name_grade(field, value) for field, value in observation.ListFields()}


def _name_grade(field: FieldDescriptor, number: int) -> str:
    enum = field.enum_type
    known = None if enum is None else enum.values_by_number.get(number)
    if enum is None or known is None:
        return str(number)
    # Every name begins with the prefix of the value 0, which is never sent.
    prefix: str = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    name: str = known.name.removeprefix(prefix)
    return name.lower()


def summarise_grades(started: GenerationStarted) -> str:
    """Return the grades in one line: "token ids sampled, distribution raw, ..."; "" for none."""
    grades = list_grades(started.observation)
    return ", ".join(
        f"{name.replace('_', ' ')} {grade.replace('_', ' ')}" for name, grade in grades.items()
    )


def describe_upstream(upstream: UpstreamInfo) -> str:
    """Return an upstream in one line: its kind, version, URL, model and files."""
    version = f" {upstream.version}" if upstream.version else ""
    files = f", files {upstream.claimed_files}" if upstream.claimed_files else ""
    return f"{upstream.kind}{version} at {upstream.url}, model {upstream.model}{files}"
