"""Refusal of adapters that do not belong to the served model, by name, and with the reason."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_models import lora, save_adapter
from engine_harness import engine_options
from safetensors.torch import load_file, save_file
from tiny_models import byte_level_tokenizer

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import adapters
from whence_server.engines.transformers.loading import load


@pytest.fixture(scope="module")
def base(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "lora", lora())


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def refusal(base: Path, *directories: Path) -> str:
    given = tuple((directory.name, str(directory)) for directory in directories)
    with pytest.raises(ConfigurationError) as caught:
        load(engine_options(base, adapters=given))
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(f"--adapter {directories[-1].name}={directories[-1]}: ")
    return caught.value.message


def configure(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_missing_peft_names_the_package_to_install(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    assert refusal(base, adapter).endswith("PEFT is needed: pip install 'whence[adapters]'")


def test_a_directory_without_an_adapter_is_refused(base: Path) -> None:
    assert "the directory has no adapter_config.json" in refusal(base, base)


def test_an_adapter_without_weights_is_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "is an adapter without weights" in refusal(base, adapter)


def test_a_broken_configuration_is_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("[]")
    assert "is not an adapter's configuration" in refusal(base, adapter)


def test_a_model_that_is_an_adapter_itself_takes_no_others(saved: Path, adapter: Path) -> None:
    message = refusal(saved, adapter)
    assert f"the model in {saved} has an adapter itself; serve its base with --model" in message


def test_an_adapter_of_a_base_of_another_size_is_refused_with_the_tensor_and_shapes(
    base: Path, adapter: Path
) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({n: t[:, :-1].contiguous() for n, t in load_file(path).items()}, path)
    message = refusal(base, adapter)
    assert "is for another base model: the shapes of 12 of its tensors differ" in message
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert f"size mismatch for {name}" in message
    assert "torch.Size([4, 48])" in message


def test_an_adapter_of_another_architecture_is_refused(
    adapter: Path, tiny_model: Callable[..., Path]
) -> None:
    other = tiny_model("gpt2")
    configure(adapter, base_model_name_or_path=str(other))
    assert f"it cannot be added to {other}" in refusal(other, adapter)


def test_an_adapter_of_other_weights_of_the_same_shapes_is_refused_with_both_digests(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    message = refusal(other, adapter)
    assert f"it is an adapter of {base}, whose model.safetensors has the SHA-256 " in message
    assert sha256(base / "model.safetensors") in message
    assert (
        f"that of the served model in {other} is {sha256(other / 'model.safetensors')}" in message
    )
    assert f"Serve {base} with --model" in message
    configure(adapter, base_model_name_or_path=str(other))
    load(engine_options(other, adapters=(("it", str(adapter)),)))


def test_a_copy_of_the_base_and_a_base_elsewhere_are_taken(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(base, tmp_path / "copied"))
    info = load(engine_options(copied, adapters=(("it", str(adapter)),))).info
    assert info.adapters[0].identity.base == str(base)
    configure(adapter, base_model_name_or_path="somebody/somewhere")
    info = load(engine_options(base, adapters=(("it", str(adapter)),))).info
    assert info.adapters[0].identity.base == "somebody/somewhere"


def test_an_adapter_that_writes_to_its_base_is_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model("qwen2")
    biased = save_adapter(base, tmp_path / "biased", lora(bias="lora_only"))
    monkeypatch.setattr(adapters, "changes_biases", lambda _directory: False)
    message = refusal(base, biased)
    assert "it changes tensors of its base (model.layers.0.self_attn.q_proj.bias, " in message


def test_a_tokenizer_with_other_ids_is_refused_and_one_with_the_same_is_not_read(
    base: Path, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}!"
    tokenizer.save_pretrained(adapter)
    path = adapter / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    info = load(engine_options(base, adapters=(("it", str(adapter)),))).info
    assert info.text.chat_template != tokenizer.chat_template
    assert "the tokenizer of the adapter it is not read" in caplog.text
    tokenizer.add_tokens(["<tone>"])
    tokenizer.save_pretrained(adapter)
    message = refusal(base, adapter)
    assert "its tokenizer differs from the served model's in the ids of 1 tokens" in message
    assert "<tone>" in message


def test_the_base_is_the_same_to_the_bit_with_and_without_adapters(base: Path, saved: Path) -> None:
    alone = load(engine_options(base))
    loaded = load(engine_options(base, adapters=(("it", str(saved)),)))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.inference_mode():
        expected = alone.model(input_ids=ids).logits
        assert torch.equal(loaded.model(input_ids=ids).logits, expected)
        assert not torch.equal(loaded.adapted[0].model(input_ids=ids).logits, expected)
    shared = {tensor.data_ptr() for tensor in loaded.model.parameters()}
    own = {tensor.data_ptr() for tensor in loaded.adapted[0].model.parameters()}
    assert shared < own, "the base's tensors are in memory once"
