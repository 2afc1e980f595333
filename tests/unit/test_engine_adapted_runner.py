"""Rows of several adapters: each keeps its own tokens, whatever joins, leaves or is copied."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from whence_server.engines.transformers.adapted_runner import AdaptedRunner


@dataclass
class FakePrompt:
    token_ids: list[int]
    num_done: int = 0
    readout: None = None

    @property
    def num_left(self) -> int:
        return len(self.token_ids) - self.num_done


@dataclass
class FakeRunner:
    """Runner whose logits are its name and the sum of the row's tokens."""

    name: int
    adapters: set[str]
    rows: list[list[int]] = field(default_factory=list)
    num_released: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def start(
        self, token_ids: list[int], num_generated: int, *, probed: bool, adapter: str
    ) -> FakePrompt:
        assert not probed
        assert adapter in self.adapters
        assert num_generated == 0
        return FakePrompt(token_ids)

    def prefill(self, prompt: FakePrompt, num_tokens: int, *, all_logits: bool) -> torch.Tensor:
        assert not all_logits
        prompt.num_done += num_tokens
        return self._compute(prompt.token_ids)

    def join(self, prompt: FakePrompt, num_rows: int = 1) -> None:
        self.rows += [list(prompt.token_ids) for _ in range(num_rows)]

    def leave(self, row: int) -> None:
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        before = [list(row) for row in self.rows]
        for source, destination in zip(sources, destinations, strict=True):
            self.rows[destination] = list(before[source])

    def decode(self, token_ids: list[int]) -> torch.Tensor:
        assert len(token_ids) == len(self.rows) > 0
        for row, token_id in zip(self.rows, token_ids, strict=True):
            row.append(token_id)
        return torch.cat([self._compute(row) for row in self.rows])

    def release(self) -> None:
        assert not self.rows
        self.num_released += 1

    def _compute(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([[self.name, sum(tokens), len(tokens)]])


@dataclass
class ExpectedRow:
    adapter: str
    tokens: list[int]


def make() -> tuple[AdaptedRunner, dict[str, Any]]:
    shared = FakeRunner(0, {"", "c"})
    runners = {"": shared, "a": FakeRunner(1, {"a"}), "b": FakeRunner(2, {"b"}), "c": shared}
    return AdaptedRunner(runners), runners  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_rows_keep_their_tokens_whatever_joins_leaves_and_is_copied(seed: int) -> None:
    choose = random.Random(seed)
    runner, runners = make()
    rows: list[ExpectedRow] = []
    for _ in range(60):
        action = choose.choice(["join", "join", "leave", "copy", "decode", "decode"])
        if action == "join":
            adapter, tokens = choose.choice(list(runners)), [choose.randrange(100)]
            prompt = runner.start(tokens, adapter=adapter)
            first = runner.prefill(prompt, 1, all_logits=False)
            assert first.tolist() == [[runners[adapter].name, *tokens, 1]]
            assert prompt.num_left == 0
            num = choose.randint(1, 3)
            runner.join(prompt, num)
            rows += [ExpectedRow(adapter, list(tokens)) for _ in range(num)]
        elif action == "leave" and rows:
            row = choose.randrange(len(rows))
            runner.leave(row)
            rows[row] = rows[-1]
            rows.pop()
        elif action == "copy" and rows:
            source = choose.randrange(len(rows))
            runner_of = runners[rows[source].adapter]
            places = [i for i, row in enumerate(rows) if runners[row.adapter] is runner_of]
            destination = choose.choice(places)
            runner.copy_rows([source], [destination])
            rows[destination] = ExpectedRow(rows[source].adapter, list(rows[source].tokens))
        elif action == "decode" and rows:
            given = [choose.randrange(100) for _ in rows]
            for row, token_id in zip(rows, given, strict=True):
                row.tokens.append(token_id)
            assert runner.decode(given).tolist() == [
                [runners[row.adapter].name, sum(row.tokens), len(row.tokens)] for row in rows
            ]
        assert runner.num_rows == len(rows)


def test_an_adapters_memory_is_freed_with_its_last_row() -> None:
    runner, runners = make()
    for adapter in ("a", "a", "b"):
        prompt = runner.start([1], adapter=adapter)
        runner.prefill(prompt, 1, all_logits=False)
        runner.join(prompt)
    runner.leave(0)
    assert runners["a"].num_released == 0
    runner.leave(1)
    assert (runners["a"].num_released, runners["b"].num_released) == (1, 0)


def test_rows_are_not_copied_to_those_of_another_adapter() -> None:
    runner, _ = make()
    for adapter in ("a", "b"):
        runner.join(runner.start([1], adapter=adapter))
    with pytest.raises(ValueError, match="needs rows of one adapter"):
        runner.copy_rows([0], [1])
