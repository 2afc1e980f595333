"""The batched cache, compared with one of transformers' caches for each row."""

import random

import pytest
import torch
from transformers import DynamicCache

from whence_server.engines.transformers.cache import BatchedCache, BatchedLayer

LAYERS, HEADS, SIZE = 2, 3, 4


class Rows:
    """A batched cache with a DynamicCache for each of its rows."""

    def __init__(self) -> None:
        self.batch = BatchedCache(LAYERS)
        self.alone: list[DynamicCache] = []

    def insert(self, length: int, num_rows: int = 1) -> None:
        prompt = BatchedCache(LAYERS, length)
        alone = [DynamicCache() for _ in range(num_rows)]
        for layer in range(LAYERS):
            keys, values = states(1, length), states(1, length)
            prompt.update(keys, values, layer)
            for cache in alone:
                cache.update(keys, values, layer)
        self.batch.insert(prompt, num_rows)
        self.alone += alone

    def step(self) -> None:
        for layer in range(LAYERS):
            keys, values = states(len(self.alone), 1), states(len(self.alone), 1)
            seen = self.batch.update(keys, values, layer)
            for row, cache in enumerate(self.alone):
                expected = cache.update(keys[row : row + 1], values[row : row + 1], layer)
                for ours, theirs in zip(seen, expected, strict=True):
                    self.compare(ours[row], theirs[0])

    def compare(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        length = theirs.shape[1]
        torch.testing.assert_close(ours[:, ours.shape[1] - length :], theirs, rtol=0, atol=0)
        assert not ours[:, : ours.shape[1] - length].any(), "padding is zero"

    def remove(self, row: int) -> None:
        self.batch.remove(row)
        self.alone[row] = self.alone[-1]
        self.alone.pop()

    def check(self) -> None:
        assert self.batch.lengths == [cache.get_seq_length() for cache in self.alone]
        assert self.batch.width == max(self.batch.lengths, default=0), "nothing but what is used"


def states(rows: int, length: int) -> torch.Tensor:
    return torch.randn(rows, HEADS, length, SIZE)


def test_rows_can_join_step_and_leave() -> None:
    torch.manual_seed(0)
    rows, choose = Rows(), random.Random(0)
    for _ in range(400):
        if len(rows.alone) < 9 and choose.random() < 0.2:
            rows.insert(choose.randint(1, 90), choose.choice([1, 1, 3]))
        if rows.alone and choose.random() < 0.15:
            rows.remove(choose.randrange(len(rows.alone)))
        if rows.alone:
            rows.step()
        rows.check()


def test_a_longer_prompt_adds_padding_to_other_rows() -> None:
    rows = Rows()
    rows.insert(3)
    rows.step()
    rows.insert(50, num_rows=2)
    rows.step()
    assert rows.batch.padding == [46, 0, 0]
    rows.remove(2)
    rows.remove(1)
    assert rows.batch.padding == [0]
    assert rows.batch.width == 5


def test_padding_holds_no_nan_of_an_earlier_row() -> None:
    rows = Rows()
    rows.insert(40)
    rows.insert(40)
    for layer in rows.batch.layers:
        for buffer in (layer.keys, layer.values):
            buffer.fill_(torch.nan)
    rows.remove(1)
    rows.remove(0)
    rows.insert(2)
    rows.insert(5)
    rows.step()
    rows.insert(20)
    rows.step()


def test_steps_write_in_place() -> None:
    rows = Rows()
    rows.insert(10)
    rows.step()
    addresses = {layer.keys.data_ptr() for layer in rows.batch.layers}
    for _ in range(20):
        rows.step()
    assert {layer.keys.data_ptr() for layer in rows.batch.layers} == addresses


def test_rows_are_copied_from_their_state_before_the_call() -> None:
    rows = Rows()
    for length in (9, 4, 9, 9):
        rows.insert(length)
    rows.step()
    # A circle of two, and one that two want.
    rows.batch.copy_rows([2, 0, 0], [0, 2, 3])
    rows.alone = [copy_of(rows.alone[row]) for row in (2, 1, 0, 0)]
    rows.check()
    rows.step()
    rows.check()


def copy_of(cache: DynamicCache) -> DynamicCache:
    copy = DynamicCache()
    for layer, (keys, values, _) in enumerate(cache):
        copy.update(keys.clone(), values.clone(), layer)
    return copy


def test_clear_works_after_a_failed_forward_pass() -> None:
    rows = Rows()
    rows.insert(5)
    rows.batch.update(states(1, 1), states(1, 1), 0)
    rows.batch.clear()
    rows.alone.clear()
    rows.insert(7)
    rows.step()
    rows.check()


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_cache_reports_sizes_for_transformers_masks(layer: int) -> None:
    rows = Rows()
    rows.insert(5)
    assert rows.batch.get_seq_length(layer) == 5
    assert rows.batch.get_query_offset(layer) == 5
    assert rows.batch.get_mask_sizes(1, layer) == (6, 0)
    assert rows.batch.get_max_length() == -1


def test_row_capacity_shrinks_when_a_few_long_rows_follow_many_short_ones() -> None:
    layer, short, long = BatchedLayer(), BatchedLayer(), BatchedLayer()
    short.update(*(torch.ones(1, 1, 10, 2) for _ in range(2)))
    long.update(*(torch.ones(1, 1, 3_000, 2) for _ in range(2)))
    layer.insert(short, 64)
    for _ in range(64):
        layer.remove(0)
    layer.insert(long, 1)
    assert layer.keys.shape[0] == 1
    assert layer.keys.shape[2] <= 2 * 3_000
