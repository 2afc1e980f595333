"""Refusal of adapters that cannot be served, with messages that name the fault and the remedy."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_models import TASK, lora, save_adapter
from engine_harness import engine_options
from safetensors.torch import load_file, save_file

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.loading import load
from whence_server.engines.transformers.weights import find_places, list_weight_files


@pytest.fixture(scope="module")
def base(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "lora", lora())


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def refusal(directory: Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(engine_options(directory, **options))
    assert "\n" not in caught.value.message
    return caught.value.message


def configure(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(adapter: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_a_missing_peft_names_the_package_to_install(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    beside = Path(shutil.copytree(base, tmp_path / "beside"))
    shutil.copy(adapter / "adapter_config.json", beside)
    for directory in (adapter, beside):
        assert refusal(directory).endswith("PEFT is needed: pip install 'whence[adapters]'")
    assert not find_places(str(base), trust_remote_code=False).has_adapter


@pytest.mark.parametrize("name", ["/nowhere/at/all", "../gone", "./gone"])
def test_a_missing_base_is_named(adapter: Path, name: str) -> None:
    configure(adapter, base_model_name_or_path=name)
    message = refusal(adapter)
    assert f"is an adapter of {name}, which cannot be found" in message
    assert "set base_model_name_or_path in adapter_config.json to its directory" in message


@pytest.mark.parametrize("name", [None, "", 3])
def test_an_adapter_that_names_no_base_is_refused(adapter: Path, name: object) -> None:
    configure(adapter, base_model_name_or_path=name)
    assert "names no base: set base_model_name_or_path" in refusal(adapter)


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"r": 4}', "\x00"])
def test_a_broken_configuration_is_refused(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    assert "adapter_config.json is not an adapter's configuration" in refusal(adapter)


def test_a_base_that_is_an_adapter_itself_is_refused(adapter: Path, saved: Path) -> None:
    for name in (str(saved), str(adapter)):
        configure(adapter, base_model_name_or_path=name)
        assert "which has an adapter itself; merge that one" in refusal(adapter)


def test_another_models_adapter_is_refused(adapter: Path, tiny_model: Callable[..., Path]) -> None:
    configure(adapter, base_model_name_or_path=str(tiny_model("gpt2")))
    assert "cannot be added to" in refusal(adapter)


def test_an_adapter_of_a_base_of_another_size_is_refused(
    adapter: Path, tiny_model: Callable[..., Path]
) -> None:
    edit_tensors(adapter, lambda t: t.update({n: v[:, :-1].contiguous() for n, v in t.items()}))
    message = refusal(adapter)
    assert "is for another base model: the shapes of 12 of its tensors differ" in message
    assert "size mismatch for base_model.model.model.layers.0" in message


def test_tensors_that_do_not_match_the_configuration_are_refused(adapter: Path) -> None:
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    edit_tensors(adapter, lambda t: t.update({name.replace("q_proj", "o_proj"): t.pop(name)}))
    message = refusal(adapter)
    assert "1 missing: " in message
    assert "1 unexpected: " in message


def test_an_adapter_without_weights_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "is an adapter without weights" in refusal(adapter)


def test_damaged_weights_are_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"garbage")
    assert "damaged safetensors file" in refusal(adapter)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type=TASK, num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type=TASK, num_virtual_tokens=3),
        peft.PromptEncoderConfig(task_type=TASK, num_virtual_tokens=3),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapter_types_that_change_more_than_layers_are_refused(
    base: Path, tmp_path: Path, config: peft.PeftConfig
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", config)
    message = refusal(adapter)
    assert f"is an adapter of PEFT type {config.peft_type.value}, which is not served" in message
    assert "merge_and_unload" in message


def test_an_adapter_with_invocation_tokens_is_refused(adapter: Path) -> None:
    configure(adapter, alora_invocation_tokens=[3, 4])
    assert "alora_invocation_tokens, which is not served" in refusal(adapter)


def test_a_setting_that_this_release_of_peft_does_not_know_is_refused(adapter: Path) -> None:
    configure(adapter, use_a_thing_of_the_future=True)
    message = refusal(adapter)
    assert "needs another release of PEFT" in message
    assert "use_a_thing_of_the_future" in message


def test_a_directory_of_adapters_is_refused_with_their_names(saved: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"directories with adapters: name one .*\(lora\)"):
        list_weight_files(saved.parent)


def test_weights_under_another_name_are_refused(base: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(base, tmp_path / "model"))
    path = directory / "config.json"
    config = json.loads(path.read_text()) | {"transformers_weights": "other.safetensors"}
    path.write_text(json.dumps(config))
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")
    assert "transformers_weights: call them model.safetensors" in refusal(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_from_another_repository_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    directory = Path(shutil.copytree(base, tmp_path / "model"))
    path = directory / name
    code = {"auto_map": {"AutoTokenizer": ["someone/else--code.Tokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    assert "takes its code from another repository" in refusal(directory, trust_remote_code=True)


def test_code_in_folders_and_templates_by_name_are_digested(base: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(base, tmp_path / "model"))
    (directory / "layers").mkdir()
    (directory / "layers" / "norm.py").write_text("")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    info = load(engine_options(directory, trust_remote_code=True)).info
    names = {file.path for file in info.files}
    assert {"layers/norm.py", "additional_chat_templates/rag.jinja"} <= names
    assert info.tokenizer_digest != load(engine_options(base)).info.tokenizer_digest
