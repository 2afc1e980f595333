"""Loading of models, their description, and the messages for those that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence_server.domain.decoding import GenerationDefaults
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.context import UNLIMITED_CONTEXT
from whence_server.engines.transformers.digests import (
    digest_files,
    digest_model_files,
    digest_weights,
)
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.loading import load
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.solo import SoloRunner

TinyModel = Callable[..., Path]


def options(directory: Path | str, **changes: object) -> EngineOptions:
    return EngineOptions(
        model=str(directory),
        model_name="tiny",
        dtype="auto",
        device="cpu",
        num_threads=1,
        max_batch_size=8,
        max_cache_tokens=4096,
        prefill_chunk_tokens=64,
        trust_remote_code=False,
        log_level="info",
        digest_cache="",
    )._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Path]:
    def make(architecture: str = "gpt2") -> Path:
        return Path(shutil.copytree(tiny_model(architecture), tmp_path / architecture))

    return make


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(directory: Path | str, **changes: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(options(directory, **changes))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_loaded_model_is_described(tiny_model: TinyModel) -> None:
    directory = tiny_model("llama")
    loaded = load(options(directory))
    info = loaded.info
    reference = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (info.name, info.architecture) == ("tiny", "LlamaForCausalLM")
    assert info.num_parameters == sum(p.numel() for p in reference.parameters())
    assert (info.num_layers, info.vocabulary_size, info.max_context_length) == (3, 416, 256)
    assert info.batched
    assert loaded.style is not None
    assert isinstance(loaded.make_runner(), Runner)
    assert info.loaded_files == ("model.safetensors",)
    assert [file.path for file in info.files] == sorted(p.name for p in directory.iterdir())
    assert info.model_digest == digest_model_files(info.files)
    assert info.tokenizer_digest == digest_model_files(
        digest_files(directory, ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
    )
    assert info.environment.dtype == "float32"
    assert info.environment.device == "cpu"
    assert info.environment.attention_implementation == "sdpa"
    assert info.defaults == GenerationDefaults(eos_token_ids=(0,))
    assert info.text.chat_template == tokenizer.chat_template
    assert info.text.special_tokens == {"eos_token": "<|endoftext|>"}
    assert json.loads(info.text.tokenizer_json)["model"]["type"] == "BPE"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


NAMED = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}", "rag": "{{ 3 }}"}


@pytest.mark.parametrize("as_files", [True, False])
def test_named_chat_templates_are_exported_and_digested(copy: TinyModel, as_files: bool) -> None:
    directory = copy("gpt2")
    plain = load(options(directory)).info
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = NAMED
    (directory / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(directory, save_jinja_files=as_files)
    assert (directory / "additional_chat_templates" / "rag.jinja").is_file() == as_files
    info = load(options(directory)).info
    assert (
        info.text.chat_template == NAMED == AutoTokenizer.from_pretrained(directory).chat_template
    )
    paths = {file.path for file in info.files}
    assert ("additional_chat_templates/rag.jinja" in paths) == as_files
    assert len({plain.tokenizer_digest, info.tokenizer_digest}) == 2
    if as_files:
        (directory / "additional_chat_templates" / "rag.jinja").write_text("{{ 4 }}")
        assert load(options(directory)).info.tokenizer_digest != info.tokenizer_digest


def test_the_weights_digest_is_taken_after_the_cast(tiny_model: TinyModel) -> None:
    directory = tiny_model("gpt2")
    full, again = load(options(directory)), load(options(directory, dtype="float32"))
    half = load(options(directory, dtype="bfloat16"))
    assert full.info.weights_digest == again.info.weights_digest != half.info.weights_digest
    assert full.info.model_digest == half.info.model_digest
    assert half.info.environment.dtype == "bfloat16"
    assert half.model.dtype is torch.bfloat16


def test_shards_are_found_through_their_index(tiny_model: TinyModel, copy: TinyModel) -> None:
    directory = copy("llama")
    (directory / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.save_pretrained(directory, max_shard_size="100KB")
    info = load(options(directory)).info
    assert len(info.loaded_files) > 1
    assert set(info.loaded_files) < {file.path for file in info.files}
    assert "model.safetensors.index.json" in {file.path for file in info.files}
    assert info.weights_digest == load(options(tiny_model("llama"))).info.weights_digest
    (directory / info.loaded_files[1]).unlink()
    assert info.loaded_files[1] in refusal(directory)


def test_tied_weights_may_be_absent(copy: TinyModel) -> None:
    directory = copy("llama")
    edit_tensors(directory, lambda tensors: tensors.pop("lm_head.weight"))
    edit_config(directory, tie_word_embeddings=True)
    assert load(options(directory)).info.architecture == "LlamaForCausalLM"


def test_an_untied_head_must_be_present(copy: TinyModel) -> None:
    directory = copy("llama")
    edit_tensors(directory, lambda tensors: tensors.pop("lm_head.weight"))
    assert "1 missing: lm_head.weight" in refusal(directory)


def test_a_renamed_tensor_is_refused_with_both_names(copy: TinyModel) -> None:
    directory = copy()
    name = "transformer.h.0.attn.c_proj.weight"
    edit_tensors(directory, lambda tensors: tensors.update({f"{name}s": tensors.pop(name)}))
    message = refusal(directory)
    assert f"1 missing: {name};" in message
    assert f"1 unexpected: {name}s" in message


def test_a_tensor_of_another_shape_is_refused(copy: TinyModel) -> None:
    directory = copy()
    name = "transformer.h.1.mlp.c_fc.bias"
    edit_tensors(directory, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    assert f"1 of another shape: {name} ((191,) instead of (192,))" in refusal(directory)


def test_messages_list_ten_names_and_the_count(copy: TinyModel) -> None:
    directory = copy()
    edit_config(directory, n_layer=5)
    message = refusal(directory)
    assert "24 missing: transformer.h.3" in message
    assert message.count("transformer.h.") == 10


def unlink(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(content)


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def configure(**changes: object) -> Callable[[Path], object]:
    return lambda directory: edit_config(directory, **changes)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unlink("config.json"), "it has no config.json"),
        (write("config.json", "{"), "valid JSON"),
        (unlink("model.safetensors"), "has no weights: one of model.safetensors, "),
        (write("model.safetensors", "garbage, garbage, garbage"), "damaged safetensors file"),
        (truncate, "damaged safetensors file"),
        (unlink("tokenizer.json"), "has no tokenizer: tokenizer.json is missing"),
        (write("tokenizer.json", "{}"), "the tokenizer in"),
        (configure(model_type="nonesuch"), "nonesuch"),
        (configure(model_type="bert"), "a 'bert' model, which is an encoder"),
        (configure(model_type="t5"), "a 't5' model, which is an encoder-decoder"),
        (configure(model_type="vit"), "'vit' model, for which neither AutoModelForCausalLM"),
    ],
)
def test_a_directory_that_cannot_be_served_is_refused(
    copy: TinyModel, spoil: Callable[[Path], object], words: str
) -> None:
    directory = copy()
    spoil(directory)
    assert words in refusal(directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_recurrent_model_loads_and_is_not_batched(tiny_model: TinyModel, dtype: str) -> None:
    loaded = load(options(tiny_model("mamba"), dtype=dtype))
    assert loaded.style is None
    assert not loaded.info.batched
    assert isinstance(loaded.make_runner(), SoloRunner)
    assert loaded.make_runner() is not loaded.make_runner()
    assert loaded.info.environment.dtype == dtype
    assert loaded.info.architecture == "MambaForCausalLM"
    assert loaded.info.num_layers == 2
    # Its config has no bound.
    assert loaded.info.max_context_length == UNLIMITED_CONTEXT


def test_the_digest_is_of_the_weights_as_they_were_loaded(tiny_model: TinyModel) -> None:
    directory = tiny_model("rwkv")
    loaded = load(options(directory))
    stored = load_file(directory / "model.safetensors")
    # The first pass divides some: a digest taken after it would be of other numbers.
    name = "rwkv.blocks.2.attention.output.weight"
    assert torch.equal(loaded.model.state_dict()[name], stored[name] / 2)
    untouched = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    assert loaded.info.weights_digest == digest_weights(untouched)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "is not a directory" in refusal(tmp_path / "nowhere")


def test_a_missing_hub_id_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "'nobody/nothing' is neither a directory nor a model" in refusal("nobody/nothing")


def test_an_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_args: object, **_kwargs: object) -> None:
        # What the hub's client lets through: neither an OSError nor an error of its own.
        raise HTTPError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "'nobody/nothing' is neither a directory nor a model" in refusal("nobody/nothing")
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert "Name or service not known" in refusal("nobody/nothing")


def test_a_model_too_large_for_memory_is_refused(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", exhausted)
    assert refusal(tiny_model("gpt2")).endswith("not enough memory")
