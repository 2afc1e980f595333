"""Plans of passes: every row once, within the bounds, and cheaper than one by one."""

import random

import pytest

from whence_server.explain import ablation_plan
from whence_server.explain.ablation_plan import OVERHEAD_TOKENS, Batch, RowSize, plan_batches

V = 1000


def random_rows(seed: int, longest: int) -> list[RowSize]:
    rng = random.Random(seed)
    rows = [RowSize(rng.randint(1, longest), 0)]
    for _ in range(40):
        length = rng.randint(1, longest)
        rows.append(RowSize(length, rng.randint(0, min(length, rows[-1].length))))
    return rows


def compute_cost(batches: list[Batch]) -> int:
    return sum(
        batch.num_tokens + OVERHEAD_TOKENS * (1 + (batch.num_prefix > batch.num_kept))
        for batch in batches
    )


@pytest.mark.parametrize("num_after", [0, 7])
@pytest.mark.parametrize("longest", [5, 60, 3000])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_read_once_from_what_the_cache_holds(
    seed: int, longest: int, num_after: int
) -> None:
    rows = random_rows(seed, longest)
    batches = plan_batches(rows, num_after, V, together=True)
    assert [i for batch in batches for i in range(batch.begin, batch.end)] == list(range(len(rows)))
    held = 0
    for batch in batches:
        here = rows[batch.begin : batch.end]
        # What is kept is in the cache, and the row before has it too.
        assert batch.num_kept <= min(held, here[0].num_shared)
        assert batch.num_kept <= batch.num_prefix
        # All have the prefix, and something after it.
        assert all(batch.num_prefix <= row.num_shared for row in here[1:])
        assert all(batch.num_prefix < row.length for row in here)
        width = max(row.length for row in here) - batch.num_prefix + num_after
        before = batch.num_prefix - batch.num_kept
        assert batch.num_tokens == before + len(here) * width
        if len(here) > 1:
            assert len(here) * width <= ablation_plan.MOST_TOKENS
            assert len(here) * (batch.num_prefix + width) <= ablation_plan.MOST_COLUMNS
            held = batch.num_prefix
        else:
            held = here[0].length
    alone = plan_batches(rows, num_after, V, together=False)
    assert all(batch.end == batch.begin + 1 for batch in alone)
    assert compute_cost(batches) <= compute_cost(alone)


def test_rows_with_little_left_are_read_together() -> None:
    rows = [RowSize(100, 0), *[RowSize(98, 96 - i) for i in range(8)]]
    (first, *others) = plan_batches(rows, 0, V, together=True)
    assert (first.begin, first.end) == (0, 1)
    assert len(others) == 1
    assert others[0].num_prefix == others[0].num_kept == 89
    assert others[0].num_tokens == 8 * 9


def test_a_large_vocabulary_bounds_the_rows_of_a_pass() -> None:
    rows = [RowSize(100, 0), *[RowSize(98, 90)] * 12]
    few = plan_batches(rows, 63, 131_072, together=True)
    assert max(batch.end - batch.begin for batch in few) == 4
