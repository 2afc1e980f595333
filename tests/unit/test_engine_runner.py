"""The runner under every call style, and the check that selects one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BigBirdConfig

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.batching_check import check_batching
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.style import ForwardStyle

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
    """Decode three rows of different lengths; the longest leaves, and another one joins."""
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
    runner = Runner(model, check_batching(model))
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


def test_prefill_returns_only_the_last_logits(model: Any) -> None:
    runner = Runner(model, check_batching(model))
    prompt = runner.start([5, 6, 7, 8])
    logits = runner.prefill(prompt, 3, all_logits=False)
    assert logits.shape == (1, 416)
    close(logits[0], plain(model, [5, 6, 7])[-1])


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("architecture", "windows"),
    [
        ("gpt2", {FULL: None}),
        ("llama", {FULL: None}),
        ("mistral", {SLIDING: 16}),
        ("gemma2", {SLIDING: 16, FULL: None}),
    ],
)
def test_check_batching_finds_the_call_style(
    tiny_model: TinyModel, architecture: str, windows: dict[str, int | None]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture)).eval()
    assert check_batching(model) == ForwardStyle(3, windows=tuple(windows.items()))


def test_a_model_with_masks_of_its_own_gets_no_additive_mask(
    tiny_model: TinyModel,
) -> None:
    # Bloom makes its position biases from it.
    model = AutoModelForCausalLM.from_pretrained(tiny_model("bloom")).eval()
    style = check_batching(model)
    assert style is not None
    assert not style.ready_mask


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
    style = check_batching(model)
    # OPT counts its positions from the two-dimensional mask.
    assert style == ForwardStyle(3, position_ids=False, logits_to_keep=False, ready_mask=False)
    run_three(model, style)


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("mamba", "it keeps a recurrent state"),
        ("rwkv", "it keeps a recurrent state"),
        ("jamba", "it keeps a recurrent state"),
        ("llama4", "it has chunked_attention layers"),
    ],
)
def test_a_model_that_cannot_be_batched_decodes_each_sequence_by_itself(
    tiny_model: TinyModel, caplog: pytest.LogCaptureFixture, architecture: str, why: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture)).eval()
    with caplog.at_level("INFO", "whence_server.engines.transformers.batching_check"):
        assert check_batching(model) is None
    assert f"{type(model).__name__} decodes each sequence by itself: {why}" in caplog.text


def test_a_model_with_wrong_positions_in_a_batch_decodes_each_sequence_by_itself(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = model.forward

    def without_positions(
        input_ids: torch.Tensor, attention_mask: Any = None, past_key_values: Any = None, **_: Any
    ) -> Any:
        return forward(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values
        )

    monkeypatch.setattr(model, "forward", without_positions)
    with caplog.at_level("INFO", "whence_server.engines.transformers.batching_check"):
        assert check_batching(model) is None
    assert "its logits differ between a batch of two prompts and each prompt alone" in caplog.text


def test_a_model_that_attends_to_later_tokens_is_refused(tiny_model: TinyModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    model.config.is_causal = False
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(ConfigurationError, match="LlamaForCausalLM cannot be decoded token by"):
        check_batching(model)


def test_a_model_that_keeps_its_state_in_itself_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("mamba")).eval()
    forward = model.forward
    kept: dict[str, Any] = {}

    def forgetful(input_ids: torch.Tensor, use_cache: bool = True, **_: Any) -> Any:
        if not use_cache:
            return forward(input_ids=input_ids, use_cache=False)
        before = kept.get("state") if input_ids.shape[1] == 1 else None
        output = forward(input_ids=input_ids, use_cache=True, cache_params=before)
        kept["state"] = output.cache_params
        return output

    monkeypatch.setattr(model, "forward", forgetful)
    with pytest.raises(ConfigurationError, match="MambaForCausalLM cannot be decoded token by"):
        check_batching(model)


def test_a_model_that_cannot_decode_at_all_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("mamba")).eval()
    monkeypatch.setattr(model, "prepare_inputs_for_generation", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ConfigurationError, match="MambaForCausalLM cannot be decoded token by"):
        check_batching(model)
    assert "ZeroDivisionError" in caplog.text


def test_a_step_without_padding_needs_no_mask(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    style = check_batching(model)
    assert style is not None
    runner = Runner(model, replace(style, ready_mask=False))
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


@pytest.mark.parametrize("attention_type", ["block_sparse", "original_full"])
def test_bigbird_is_served_with_full_attention_only(attention_type: str) -> None:
    config = BigBirdConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=256,
        is_decoder=True,
        attention_type=attention_type,
        block_size=4,
        num_random_blocks=1,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    if attention_type == "original_full":
        assert check_batching(model) is not None
        return
    with pytest.raises(ConfigurationError, match="original_full"):
        check_batching(model)
    assert model.bert.attention_type == "block_sparse"  # no pass was made
