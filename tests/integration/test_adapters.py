"""Adapters of PEFT, served on their base: tokens against PEFT's own `generate`, digests by hand."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from adapter_models import KINDS, generate_by_peft, lora, save_adapter
from engine_harness import Harness, greedy, loaded_model, prompt_of
from server_process import ServerProcess
from tiny_models import byte_level_tokenizer
from transformers import AutoModelForCausalLM

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc
from whence_server.engines.transformers.digests import digest_weights

PROMPT = prompt_of(15, seed=3)


@pytest.fixture(scope="module")
def base(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


def by_peft(base: Path, adapter: Path, prompt: list[int]) -> list[int]:
    return generate_by_peft(base, adapter, prompt)[0]


def served(directory: Path, prompt: list[int] = PROMPT) -> list[int]:
    harness = Harness(loaded_model(directory), chunk=16)
    harness.admit("neighbour", prompt_of(31, seed=8), greedy(6, ignore_eos=True))
    harness.admit("it", prompt, greedy(12, ignore_eos=True))
    harness.run()
    assert not harness.failed
    return harness.ids("it")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def signed(paths: dict[str, Path]) -> str:
    """The digest of model signing, over files under these names."""
    raw = b"".join(hashlib.sha256(paths[name].read_bytes()).digest() for name in sorted(paths))
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture(scope="module")
def without(base: Path) -> list[int]:
    """Return the tokens of the base, which differ from those of every adapter."""
    return served(base)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_are_those_of_peft(
    base: Path, without: list[int], tmp_path: Path, kind: str
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", KINDS[kind]())
    expected = by_peft(base, adapter, PROMPT)
    assert served(adapter) == expected != without


def test_an_adapters_digests_cover_both(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", lora())
    loaded = loaded_model(adapter)
    info = loaded.info
    of_base = {path.name: path for path in base.iterdir()}
    own = {name: adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")}
    recorded = {f"base/{name}": path for name, path in of_base.items()} | own
    assert {file.path: file.sha256 for file in info.files} == {
        name: sha256(path) for name, path in recorded.items()
    }
    assert info.model_digest == signed(recorded)
    assert info.loaded_files == ("base/model.safetensors", "adapter_model.safetensors")
    assert info.adapter is not None
    assert (info.adapter.peft_type, info.adapter.base) == ("LORA", str(base))
    assert info.adapter.digest == signed(own)
    alone = loaded_model(base).info
    assert alone.adapter is None
    assert info.adapter.base_model_digest == alone.model_digest != info.model_digest
    assert info.tokenizer_digest == alone.tokenizer_digest
    assert info.weights_digest == digest_weights(loaded.model.state_dict()) != alone.weights_digest
    assert info.directory == str(adapter.resolve())


def test_an_adapter_beside_a_whole_model_is_one_of_that_model(base: Path, tmp_path: Path) -> None:
    together = Path(shutil.copytree(base, tmp_path / "together"))
    save_adapter(base, tmp_path / "adapter", lora())
    for path in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(path, together)
    info = loaded_model(together).info
    assert {file.path for file in info.files} == {p.name for p in together.iterdir()}
    assert info.model_digest == signed({p.name: p for p in together.iterdir()})
    assert info.adapter is not None
    assert info.adapter.base == ""
    assert info.adapter.base_model_digest == loaded_model(base).info.model_digest
    # As in transformers, which says nothing of it.
    by_transformers = AutoModelForCausalLM.from_pretrained(together)
    ids = by_transformers.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, eos_token_id=None, pad_token_id=0
    )[0, len(PROMPT) :]
    assert served(together) == ids.tolist() == by_peft(base, together, PROMPT)


def test_an_adapters_own_tokenizer_is_used(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", lora())
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}!"
    tokenizer.save_pretrained(adapter)
    info = loaded_model(adapter).info
    assert info.text.chat_template == "{{ messages[0].content }}!"
    names = {file.path for file in info.files}
    assert {"tokenizer.json", "chat_template.jinja"} <= names
    assert not {"base/tokenizer.json", "base/chat_template.jinja"} & names
    alone = loaded_model(base).info
    assert info.tokenizer_digest != alone.tokenizer_digest
    assert info.adapter is not None
    assert info.adapter.base_model_digest == alone.model_digest


def test_an_older_adapters_pickle_is_read_and_digested(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", lora(), safe_serialization=False)
    assert (adapter / "adapter_model.bin").is_file()
    info = loaded_model(adapter).info
    assert "adapter_model.bin" in {file.path for file in info.files}
    assert served(adapter) == by_peft(base, adapter, PROMPT)


def test_a_server_serves_an_adapter_and_says_so(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", lora())
    (adapter / "generation_config.json").write_text(json.dumps({"top_k": -1}))
    with (
        ServerProcess(adapter, tmp_path / "data", "--model-name", "tuned") as process,
        grpc.insecure_channel(process.target) as channel,
    ):
        models = model_pb2_grpc.ModelServiceStub(channel)
        model = models.GetModel(model_pb2.GetModelRequest()).model
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        decoding = g.Decoding(greedy=g.Greedy(), max_new_tokens=12, ignore_eos=True)
        request = g.GenerateRequest(tokens=g.TokenInput(token_ids=PROMPT), decoding=decoding)
        events = [response.event for response in stub.Generate(request)]
    assert (model.adapter.peft_type, model.adapter.base) == ("LORA", str(base))
    assert len(model.adapter.digest) == len(model.adapter.base_model_digest) == 64
    assert events[0].started.model_digest == model.model_digest
    [sequence] = events[-1].finished.sequences
    assert list(sequence.token_ids) == by_peft(base, adapter, PROMPT)
