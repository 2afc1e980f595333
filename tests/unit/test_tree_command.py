"""`whence generations tree`: long chains and many branches."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from whence.cli import tree
from whence.cli.main import main
from whence.v1.trace_pb2 import GenerationSummary, GetGenerationResponse


class Branches:
    """Generations of a server: an id is the path of numbers from the root."""

    def __init__(self, num_children: dict[int, int]) -> None:
        self.num_listed = 0
        self._num_children = num_children

    def get(self, generation_id: str) -> GetGenerationResponse:
        found = GetGenerationResponse(summary=GenerationSummary(generation_id=generation_id))
        parent, _, _ = generation_id.rpartition(".")
        if parent:
            found.started.fork.parent_generation_id = parent
        return found

    def list(self, parent: str) -> Iterator[GenerationSummary]:
        for number in reversed(range(self._num_children.get(parent.count("."), 0))):
            self.num_listed += 1
            yield GenerationSummary(generation_id=f"{parent}.{number}")


def show(branches: Branches, monkeypatch: pytest.MonkeyPatch, generation_id: str = "g") -> int:
    @contextmanager
    def connect(_arguments: object) -> Iterator[Any]:
        yield SimpleNamespace(generations=branches)

    monkeypatch.setattr(tree, "connect", connect)
    return main(["generations", "tree", generation_id])


def list_ids(output: str) -> list[str]:
    return [line.removeprefix("* ").split()[0] for line in output.splitlines()]


def test_branches_come_oldest_first_and_before_their_siblings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(Branches({0: 2, 1: 2}), monkeypatch, "g.1") == 0
    told = capsys.readouterr().out
    assert list_ids(told) == ["g", "g.0", "g.0.0", "g.0.1", "g.1", "g.1.0", "g.1.1"]
    assert [line[0] for line in told.splitlines()] == list("    *  ")


def test_chain_that_is_longer_than_the_bound_ends_with_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(Branches(dict.fromkeys(range(1_200), 1)), monkeypatch) == 0
    told = capsys.readouterr().out.splitlines()
    assert (len(told), told[-1]) == (1_001, "(more than 1000 generations)")


def test_no_more_branches_are_read_than_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    branches = Branches({0: 50_000})
    assert show(branches, monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "(more than 1000 generations)"
    assert branches.num_listed <= 1_001
