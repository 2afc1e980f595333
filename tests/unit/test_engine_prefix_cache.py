"""Keys and values in the prefix cache: what is read is what was written, within the bounds."""

import logging
from collections.abc import Sequence

import pytest
import torch

from whence_server.engines.transformers.cache import BatchedCache
from whence_server.engines.transformers.prefix_cache import PrefixCache

NUM_LAYERS = 2
BLOCK = 4


def make_columns(num_tokens: int, seed: int = 0) -> list[torch.Tensor]:
    """Return each layer's keys and values; their heads differ in size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (3, 5) * NUM_LAYERS
    return [torch.randn(2, num_tokens, size, generator=generator) for size in sizes]


def make_prompt(columns: Sequence[torch.Tensor] = (), num_tokens: int = 0) -> BatchedCache:
    """Return the cache of a prompt whose first tokens have been read."""
    cache = BatchedCache(NUM_LAYERS, 64)
    for layer in range(NUM_LAYERS if num_tokens else 0):
        keys, values = (column[None, :, :num_tokens] for column in columns[2 * layer :][:2])
        cache.update(keys, values, layer)
    return cache


def equals(cache: BatchedCache, columns: Sequence[torch.Tensor], num_tokens: int) -> bool:
    pairs = zip(cache.list_columns(), columns, strict=True)
    return all(torch.equal(ours, theirs[:, :num_tokens]) for ours, theirs in pairs)


def test_a_prompt_gets_the_columns_of_the_whole_blocks_before_its_last_token() -> None:
    prefixes, columns = PrefixCache(64, BLOCK), make_columns(10)
    prefixes.write("", range(10), columns)
    assert prefixes.num_tokens == 8
    for prompt, num_cached in (
        (range(12), 8),
        (range(9), 8),
        (range(8), 4),
        ([*range(7), 99], 4),
        ([99, *range(1, 8)], 0),
    ):
        cache = make_prompt()
        assert prefixes.read("", prompt, cache) == num_cached
        assert cache.width == num_cached
        assert not num_cached or equals(cache, columns, num_cached)
    assert prefixes.read("adapter", range(12), make_prompt()) == 0


@pytest.mark.parametrize("num_read", [1, 4, 6])
def test_a_prompt_that_is_partly_read_gets_what_follows(num_read: int) -> None:
    prefixes, columns = PrefixCache(64, BLOCK), make_columns(12)
    prefixes.write("", range(12), columns)
    cache = make_prompt(columns, num_read)
    assert prefixes.read("", range(20), cache) == 12 - num_read
    assert equals(cache, columns, 12)
    assert prefixes.read("", range(20), cache) == 0


def test_prefixes_stay_as_they_were_while_the_pool_grows_and_blocks_are_given_up() -> None:
    prefixes = PrefixCache(1200 * BLOCK + 3, BLOCK)
    written: dict[int, tuple[range, list[torch.Tensor]]] = {}
    for number in range(60):
        token_ids = range(1000 * number, 1000 * number + 37 * BLOCK)
        columns = make_columns(len(token_ids), number)
        prefixes.write("", token_ids, columns)
        written[number] = (token_ids, columns)
        assert prefixes.num_tokens == min(37 * (number + 1), 1200) * BLOCK
        for earlier in (number, number // 2):
            token_ids, columns = written[earlier]
            cache = make_prompt()
            num_cached = prefixes.read("", [*token_ids, 1], cache)
            assert num_cached == len(token_ids) or number > 1200 // 37
            assert not num_cached or equals(cache, columns, num_cached)


def test_the_pool_is_no_larger_than_the_setting() -> None:
    prefixes = PrefixCache(100 * BLOCK, BLOCK)
    for number in range(30):
        prefixes.write("", range(1000 * number, 1000 * number + 11 * BLOCK), make_columns(44))
    sizes = {len(pool) for pool in prefixes._pools}
    assert sizes == {100}


def test_a_prefix_that_cannot_be_kept_empties_the_cache_and_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prefixes, columns = PrefixCache(64, BLOCK), make_columns(12)
    prefixes.write("", range(8), columns)
    too_short = [column[:, :9] for column in columns]
    with caplog.at_level(logging.ERROR):
        prefixes.write("", range(12), too_short)
    assert "the prefix cache is emptied" in caplog.text
    assert prefixes.num_tokens == 0
    prefixes.write("", range(8), columns)
    assert prefixes.read("", range(12), make_prompt()) == 8


def test_a_prefix_that_cannot_be_read_leaves_the_prompt_as_it_was(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes, columns = PrefixCache(64, BLOCK), make_columns(12)
    prefixes.write("", range(12), columns)
    cache = make_prompt(columns, 4)
    update = cache.update

    def fail_in_the_last_layer(keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        if layer == NUM_LAYERS - 1:
            raise MemoryError
        update(keys, values, layer)

    monkeypatch.setattr(cache, "update", fail_in_the_last_layer)
    with caplog.at_level(logging.ERROR):
        assert prefixes.read("", range(20), cache) == 0
    assert "the prefix cache is emptied" in caplog.text
    assert equals(cache, columns, 4)
    assert prefixes.num_tokens == 0
