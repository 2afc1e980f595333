"""The index of the prefix cache: what it finds, what it gives up, and its bounds."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from whence_server.engines.transformers.prefix_index import PrefixIndex

BLOCK = 2


def add(index: PrefixIndex, *token_ids: int, namespace: str = "") -> list[int]:
    return index.add(namespace, token_ids).numbers


def test_the_longest_common_prefix_in_whole_blocks_is_found() -> None:
    index = PrefixIndex(8, BLOCK)
    assert index.add("", [1, 2, 3, 4, 5, 6, 7]) == (0, [0, 1, 2])
    assert index.find("", [1, 2, 3, 4, 5, 6, 7]) == [0, 1, 2]
    assert index.find("", [1, 2, 3, 4, 5, 9]) == [0, 1]
    assert index.find("", [1, 2, 3]) == [0]
    assert index.find("", [1]) == []
    assert index.find("", []) == []
    assert index.find("", [3, 4]) == [], "a block is found only after those before it"


def test_a_prefix_that_branches_off_adds_only_its_new_blocks() -> None:
    index = PrefixIndex(8, BLOCK)
    add(index, 1, 2, 3, 4)
    assert index.add("", [1, 2, 5, 6, 3, 4]) == (1, [2, 3])
    assert index.find("", [1, 2, 5, 6, 3, 4]) == [0, 2, 3]
    assert index.num_used == 4


def test_equal_tokens_of_different_namespaces_are_different_blocks() -> None:
    index = PrefixIndex(8, BLOCK)
    add(index, 1, 2, 3, 4, namespace="adapter")
    assert index.find("", [1, 2, 3, 4]) == []
    assert index.find("other", [1, 2, 3, 4]) == []
    assert index.find("adapter", [1, 2, 3, 4]) == [0, 1]


def test_the_least_recently_used_end_of_a_prefix_is_given_up_first() -> None:
    index = PrefixIndex(4, BLOCK)
    add(index, 1, 2, 3, 4)
    add(index, 1, 2, 5, 6)
    index.find("", [1, 2, 3, 4])
    add(index, 7, 8)
    assert add(index, 9, 9) == [2], "the block of 5 and 6"
    assert index.find("", [1, 2, 5, 6]) == [0]
    assert index.find("", [1, 2, 3, 4]) == [0, 1]


def test_a_prefix_longer_than_the_index_is_kept_up_to_its_size() -> None:
    index = PrefixIndex(3, BLOCK)
    add(index, 7, 8)
    assert len(add(index, *range(20))) == 3
    assert len(index.find("", range(20))) == 3
    assert index.find("", [7, 8]) == []


def test_an_index_without_blocks_keeps_nothing() -> None:
    index = PrefixIndex(0, BLOCK)
    assert add(index, 1, 2, 3, 4) == []
    assert index.find("", [1, 2]) == []


def test_a_cleared_index_is_as_new() -> None:
    index = PrefixIndex(4, BLOCK)
    add(index, 1, 2, 3, 4)
    index.clear()
    assert index.num_used == 0
    assert index.find("", [1, 2]) == []
    assert add(index, 5, 6) == [0]


class Oracle:
    """The same behaviour without a tree: cached prefixes as tuples, in order of their last use."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.by_use: list[tuple[str, tuple[int, ...]]] = []

    def _use(self, namespace: str, token_ids: Sequence[int], num_blocks: int) -> None:
        for length in range(num_blocks * BLOCK, 0, -BLOCK):
            entry = (namespace, tuple(token_ids[:length]))
            if entry in self.by_use:
                self.by_use.remove(entry)
            self.by_use.append(entry)

    def find(self, namespace: str, token_ids: Sequence[int]) -> int:
        found = 0
        while (found + 1) * BLOCK <= len(token_ids) and (
            (namespace, tuple(token_ids[: (found + 1) * BLOCK])) in self.by_use
        ):
            found += 1
        self._use(namespace, token_ids, found)
        return found

    def add(self, namespace: str, token_ids: Sequence[int]) -> None:
        self._use(namespace, token_ids, min(len(token_ids) // BLOCK, self.num_blocks))
        del self.by_use[: max(len(self.by_use) - self.num_blocks, 0)]


TOKENS = st.lists(st.integers(0, 1), max_size=9)
CALLS = st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a"]), TOKENS), max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6), CALLS)
def test_every_block_found_holds_the_tokens_that_were_put_into_it(
    num_blocks: int, calls: list[tuple[bool, str, list[int]]]
) -> None:
    index, oracle = PrefixIndex(num_blocks, BLOCK), Oracle(num_blocks)
    contents: dict[int, tuple[str, tuple[int, ...]]] = {}
    for adds, namespace, token_ids in calls:
        if adds:
            first, numbers = index.add(namespace, token_ids)
            oracle.add(namespace, token_ids)
            for place, number in enumerate(numbers, first + 1):
                contents[number] = (namespace, tuple(token_ids[: place * BLOCK]))
        else:
            numbers = index.find(namespace, token_ids)
            assert len(numbers) == oracle.find(namespace, token_ids)
            assert [contents[number] for number in numbers] == [
                (namespace, tuple(token_ids[: place * BLOCK]))
                for place in range(1, len(numbers) + 1)
            ]
        assert index.num_used == len(oracle.by_use) <= num_blocks
        assert set(contents) <= set(range(num_blocks))
