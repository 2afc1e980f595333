"""The solo runner: results are bit-identical with `generate`, also beside other sequences."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from whence_server.engines.transformers.solo import SoloPrompt, SoloRunner

TinyModel = Callable[..., Path]

# Recurrent; both kinds of layer; a state that is no cache; attention in chunks; and a plain one.
ARCHITECTURES = ["mamba", "mamba2", "jamba", "bamba", "rwkv", "llama4", "gpt2"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Threads that wait for each other over tiny tensors on a busy machine take seconds.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tiny_model: TinyModel) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def get(architecture: str) -> Any:
        if architecture not in loaded:
            model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture))
            loaded[architecture] = model.eval()
        return loaded[architecture]

    return get


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, models: Callable[[str], Any]) -> Any:
    return models(request.param)


@pytest.fixture
def mamba(models: Callable[[str], Any]) -> Any:
    return models("mamba")


def tokens(count: int, seed: int) -> list[int]:
    choose = random.Random(seed)
    return [choose.randrange(1, 400) for _ in range(count)]


def plain(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Compare logits up to rounding, as a recurrent state rounds differently in one pass."""
    atol = 1e-4 * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def read(runner: SoloRunner, token_ids: list[int]) -> SoloPrompt:
    prompt = runner.start(list(token_ids))
    runner.prefill(prompt, len(token_ids), all_logits=False)
    return prompt


class Rows:
    """A runner with the tokens that each of its rows has read."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.runner = SoloRunner(model)
        self.read: list[list[int]] = []

    def join(self, token_ids: list[int], num_rows: int = 1) -> None:
        self.runner.join(read(self.runner, token_ids), num_rows)
        self.read += [list(token_ids) for _ in range(num_rows)]

    def step(self, token_ids: list[int]) -> None:
        logits = self.runner.decode(token_ids)
        assert self.runner.num_rows == len(self.read) == len(logits)
        for row, token_id, ours in zip(self.read, token_ids, logits, strict=True):
            row.append(token_id)
            close(ours, plain(self.model, row)[-1])

    def leave(self, row: int) -> None:
        self.runner.leave(row)
        self.read[row] = self.read[-1]
        self.read.pop()

    def copy(self, sources: list[int], destinations: list[int]) -> None:
        self.runner.copy_rows(sources, destinations)
        before = [list(row) for row in self.read]
        for source, destination in zip(sources, destinations, strict=True):
            self.read[destination] = list(before[source])


def test_rows_that_come_and_go_give_plain_logits(model: Any) -> None:
    rows = Rows(model)
    for length in (40, 1, 9):
        rows.join(tokens(length, seed=length))
    rows.step([7, 8, 9])
    rows.leave(0)
    rows.step([10, 11])
    rows.join(tokens(21, seed=1))
    rows.step([12, 13, 14])
    rows.leave(2)
    rows.step([15, 16])
    rows.leave(1)
    rows.leave(0)
    assert rows.runner.num_rows == 0


@pytest.mark.parametrize("length", [1, 3, 37])
def test_prefill_gives_logits_of_all_positions_or_of_the_last(model: Any, length: int) -> None:
    runner = SoloRunner(model)
    token_ids = tokens(length, seed=2)
    prompt = runner.start(token_ids)
    assert (prompt.num_done, prompt.num_left) == (0, length)
    every = runner.prefill(prompt, length, all_logits=True)
    assert (prompt.num_done, prompt.num_left) == (length, 0)
    expected = plain(model, token_ids)
    assert every.shape == expected.shape
    close(every, expected)
    last = runner.prefill(runner.start(token_ids), length, all_logits=False)
    assert last.shape == (1, every.shape[1])
    close(last, expected[-1:])


def test_logits_are_bit_identical_with_generate(model: Any) -> None:
    """Calls, order and kernels are the same, so that results are equal without a tolerance."""
    given = [tokens(30, seed=3), tokens(5, seed=4)]
    expected = [
        model.generate(
            torch.tensor([token_ids]),
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            max_new_tokens=30,
            return_dict_in_generate=True,
            output_logits=True,
        )
        for token_ids in given
    ]
    runner = SoloRunner(model)
    for token_ids, output in zip(given, expected, strict=True):
        prompt = runner.start(token_ids)
        logits = runner.prefill(prompt, len(token_ids), all_logits=False)
        assert torch.equal(logits, output.logits[0])
        runner.join(prompt)
    for i in range(29):
        newest = [
            int(output.sequences[0, len(token_ids) + i])
            for token_ids, output in zip(given, expected, strict=True)
        ]
        logits = runner.decode(newest)
        assert torch.equal(logits, torch.cat([output.logits[i + 1] for output in expected]))


def test_rows_of_one_prompt_share_no_mutable_state(model: Any) -> None:
    rows = Rows(model)
    token_ids = tokens(20, seed=5)
    prompt = read(rows.runner, token_ids)
    rows.runner.join(prompt, 3)
    rows.read += [list(token_ids) for _ in range(3)]
    rows.step([1, 2, 3])
    rows.step([4, 5, 6])
    # The prompt itself is as it was, too.
    rows.runner.join(prompt)
    rows.read.append(list(token_ids))
    rows.step([7, 8, 9, 10])


@pytest.mark.parametrize(
    ("sources", "destinations"),
    [
        ([1, 0], [0, 1]),
        ([1, 2, 0], [0, 1, 2]),
        ([2, 2, 2, 2], [0, 1, 2, 3]),
        ([3, 3, 0], [0, 1, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([], []),
    ],
)
def test_copied_rows_continue_from_their_sources_state(
    mamba: Any, sources: list[int], destinations: list[int]
) -> None:
    rows = Rows(mamba)
    for length in (4, 11, 2, 19):
        rows.join(tokens(length, seed=length))
    rows.step([1, 2, 3, 4])
    rows.copy(sources, destinations)
    rows.step([5, 6, 7, 8])
    rows.step([9, 10, 11, 12])


def test_rows_with_every_kind_of_state_can_be_copied(model: Any) -> None:
    rows = Rows(model)
    rows.join(tokens(25, seed=6), 3)
    rows.step([1, 2, 3])
    rows.copy([2, 2, 0], [0, 1, 2])
    rows.step([4, 5, 6])
    rows.copy([1, 1], [0, 2])
    rows.step([7, 8, 9])


def test_a_prompt_is_read_whole_and_once(mamba: Any) -> None:
    runner = SoloRunner(mamba)
    prompt = runner.start([5, 6, 7])
    with pytest.raises(ValueError, match="needs a prompt that has been read"):
        runner.join(prompt)
    with pytest.raises(
        ValueError,
        match="cannot read 2 tokens of a prompt of 3 after 0: the first 3 have",
    ):
        runner.prefill(prompt, 2, all_logits=False)
    runner.prefill(prompt, 3, all_logits=False)
    with pytest.raises(ValueError, match="of 3 after 3"):
        runner.prefill(prompt, 3, all_logits=False)
    assert runner.num_rows == 0


def test_decode_needs_a_token_for_every_row(mamba: Any) -> None:
    rows = Rows(mamba)
    rows.join([5, 6], 2)
    with pytest.raises(ValueError, match="shorter"):
        rows.runner.decode([1])


def test_clear_works_after_a_failed_pass(mamba: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(mamba)
    rows.join([5, 6, 7])
    rows.join([8, 9])
    with monkeypatch.context() as broken:
        broken.setattr(mamba.backbone.layers[1], "forward", lambda *_args, **_kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rows.runner.decode([1, 2])
    rows.runner.clear()
    rows.read.clear()
    assert rows.runner.num_rows == 0
    rows.join([10, 11, 12])
    rows.step([13])
