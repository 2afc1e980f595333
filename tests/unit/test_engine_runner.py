"""The runner under every style of call, and the probe that chooses one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from whence_server.domain.errors import ConfigurationError
from whence_server.engine.probe import examine
from whence_server.engine.runner import ForwardStyle, Runner

TinyModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # Threads that wait for each other over tiny tensors on a busy machine take seconds.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tiny_model: TinyModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")).eval()


def plain(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def run_three(model: Any, style: ForwardStyle) -> None:
    """Three rows of different lengths; the longest leaves, and another comes."""
    runner = Runner(model, style)
    rows = [list(range(3, 3 + length)) for length in (20, 3, 9)]

    def join(row: list[int], chunk: int) -> None:
        prompt = runner.start(list(row))
        while prompt.num_left:
            done, wanted = prompt.num_done, min(chunk, prompt.num_left)
            logits = runner.prefill(prompt, wanted, all_logits=True)
            close(logits, plain(model, row)[done : done + wanted])
        runner.join(prompt)

    def step(token_id: int) -> None:
        logits = runner.decode([token_id] * len(rows))
        for row, ours in zip(rows, logits, strict=True):
            row.append(token_id)
            close(ours, plain(model, row)[-1])

    for row in rows:
        join(row, chunk=4)
    for token_id in (7, 8, 9):
        step(token_id)
    runner.leave(0)
    rows[0] = rows.pop()
    step(10)
    rows.append([30, 31])
    join(rows[-1], chunk=100)
    for token_id in range(20, 30):
        step(token_id)


@pytest.mark.parametrize("ready_mask", [True, False])
@pytest.mark.parametrize("logits_to_keep", [True, False])
def test_every_style_gives_plain_logits(model: Any, ready_mask: bool, logits_to_keep: bool) -> None:
    run_three(model, ForwardStyle(3, ready_mask=ready_mask, logits_to_keep=logits_to_keep))


def test_the_mask_outgrows_its_spare_columns(tiny_model: TinyModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2-long")).eval()
    runner = Runner(model, examine(model))
    rows = [[5, 6, 7], [8]]
    for row in rows:
        prompt = runner.start(list(row))
        runner.prefill(prompt, len(row), all_logits=False)
        runner.join(prompt)
    for token_id in range(300):
        logits = runner.decode([token_id, token_id])
        for row in rows:
            row.append(token_id)
    for row, ours in zip(rows, logits, strict=True):
        close(ours, plain(model, row)[-1])


def test_only_the_last_logits_where_the_rest_is_not_wanted(model: Any) -> None:
    runner = Runner(model, examine(model))
    prompt = runner.start([5, 6, 7, 8])
    logits = runner.prefill(prompt, 3, all_logits=False)
    assert logits.shape == (1, 416)
    close(logits[0], plain(model, [5, 6, 7])[-1])


@pytest.mark.parametrize(
    ("architecture", "ready_mask"), [("gpt2", True), ("llama", True), ("mistral", False)]
)
def test_the_probe_finds_the_style(
    tiny_model: TinyModel, architecture: str, ready_mask: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture)).eval()
    assert examine(model) == ForwardStyle(3, ready_mask=ready_mask)


def test_a_forward_with_neither_positions_nor_logits_to_keep(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("opt")).eval()
    forward = model.forward

    def narrow(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
    ) -> Any:
        return forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    monkeypatch.setattr(model, "forward", narrow)
    style = examine(model)
    # OPT counts its positions from the two-dimensional mask.
    assert style == ForwardStyle(3, position_ids=False, logits_to_keep=False, ready_mask=False)
    run_three(model, style)


def test_a_model_that_cannot_tell_its_rows_positions_is_refused(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.forward

    def without_positions(
        input_ids: torch.Tensor, attention_mask: Any = None, past_key_values: Any = None, **_: Any
    ) -> Any:
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values
        )

    monkeypatch.setattr(model, "forward", without_positions)
    with pytest.raises(ConfigurationError, match="cannot be batched"):
        examine(model)


def test_a_model_that_looks_ahead_is_refused(tiny_model: TinyModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    model.config.is_causal = False
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ConfigurationError, match="cannot be batched"):
        examine(model)


def test_a_step_without_padding_needs_no_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(model, examine(model))
    for length in (6, 6):
        prompt = runner.start([5] * length)
        runner.prefill(prompt, length, all_logits=False)
        runner.join(prompt)
    seen: list[Any] = []
    forward = model.forward

    def recorded(**arguments: Any) -> Any:
        seen.append(arguments.get("attention_mask"))
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", recorded)
    runner.decode([1, 2])
    assert seen == [None]
