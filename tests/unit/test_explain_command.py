"""`whence explain --recorded`: it selects what is on record, and refuses what it would ignore."""

import argparse
import json
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from whence.cli import explain
from whence.cli.exits import UsageError
from whence.v1 import explanation_pb2, occurrence_pb2, trace_pb2

SPANS = ((0, 3, 4), (1, 3, 4), (0, 3, 6))
"""Sequence, first step and step after the last one, of each explanation on record."""


@pytest.fixture(autouse=True)
def _record(monkeypatch: pytest.MonkeyPatch) -> None:
    record = trace_pb2.GetGenerationResponse(occurrences=[occurrence_pb2.Occurrence()])
    for sequence, begin, end in SPANS:
        span = explanation_pb2.ExplainedSpan(
            sequence_index=sequence,
            begin_step=begin,
            end_step=end,
            text=f"{sequence}:{begin}:{end}",
        )
        made = record.occurrences.add().explained.explanation
        made.CopyFrom(explanation_pb2.Explanation(span=span))
    client = SimpleNamespace(generations=SimpleNamespace(get=lambda _id: record))

    @contextmanager
    def connect(_arguments: Any) -> Any:
        yield client

    monkeypatch.setattr(explain, "connect", connect)


def run(*given: str) -> int:
    parser = argparse.ArgumentParser()
    explain.add_command(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    return explain.run_explain(parser.parse_args(["explain", "id", "--recorded", *given]))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((), SPANS),
        (("--sequence", "1"), SPANS[1:2]),
        (("--step", "3"), SPANS[:1]),
        (("--sequence", "1", "--step", "3"), SPANS[1:2]),
        (("--span", "3:6"), SPANS[2:]),
        (("--step", "9"), ()),
    ],
)
def test_the_sequence_and_the_steps_select(
    capsys: pytest.CaptureFixture[str], given: tuple[str, ...], found: tuple[tuple[int, ...], ...]
) -> None:
    assert run("--json", *given) == 0
    output = capsys.readouterr()
    texts = [json.loads(line)["result"]["span"]["text"] for line in output.out.splitlines()]
    assert texts == [":".join(map(str, span)) for span in found]
    assert output.err == ("" if found else "no such explanation is on record\n")


@pytest.mark.parametrize(
    "given",
    [
        *(("--html", "x.html"), ("--method", "flow"), ("--segments", "words"), ("--seed", "0")),
        *(("--against", "a"), ("--against-id", "0"), ("--operator", "hide"), ("--no-trust",)),
        *(("--prompt", "a"), ("--text", "b"), ("--ablations", "9"), ("--max-gap", "0.1")),
        ("--corrupted-segment", "0"),
    ],
)
def test_an_option_that_computes_is_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"computes nothing, .* with {given[0]}$"):
        run(*given)


def test_a_step_and_a_span_contradict() -> None:
    with pytest.raises(UsageError, match="--step and --span contradict"):
        run("--step", "3", "--span", "3:6")


def test_the_corrupted_segment_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    explain.add_command(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
    arguments = parser.parse_args(["explain", "id", "--step", "1", "--corrupted-segment", "2"])
    assert explain._read_options(arguments)["corrupted_segment"] == 2
