"""A GGUF file as people have it: served, described, and equal to its converted form."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer
from whence_command import run_whence_well

from whence import Client
from whence_server.demo.cache import find_cache_dir
from whence_server.demo.real_weights import GGUF_NAME, GGUF_SHA256, ensure_gguf
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.digests import digest_weights
from whence_server.engines.transformers.gguf_file import find_gguf, read_quantization

RECORDED = Path(__file__).parents[1] / "recorded" / "llamacpp_token_ids.json"


@pytest.fixture(scope="module")
def gguf(real_model: Path) -> Path:
    return ensure_gguf(find_cache_dir())


@pytest.fixture(scope="module")
def server(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(gguf, tmp_path_factory.mktemp("data")) as process:
        yield process


def test_a_gguf_file_is_served_as_what_it_is(
    server: ServerProcess, real_model: Path, gguf: Path
) -> None:
    converted = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    with Client(server.target) as client:
        model = client.model()
        with client.generate("The capital of France is", max_new_tokens=12, greedy=True) as ours:
            token_ids = [token.token_id for token in ours]

    assert model.model == gguf.stem
    assert (model.source.format, model.source.quantization) == ("gguf", "Q4_1")
    assert model.source.dequantized
    assert model.dtype == "float32"
    assert [(file.path, file.sha256) for file in model.files] == [(GGUF_NAME, GGUF_SHA256)]
    assert model.weights_digest == digest_weights(converted.state_dict())
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    expected = converted.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert token_ids == expected[0, prompt["input_ids"].shape[1] :].tolist()


def test_token_ids_are_those_of_llama_cpp(server: ServerProcess) -> None:
    texts = json.loads(RECORDED.read_text(encoding="utf-8"))["texts"]
    with Client(server.target) as client:
        for case in texts:
            # No empty prompt is taken.
            if case["text"]:
                with client.generate(case["text"], max_new_tokens=1) as generation:
                    list(generation)
                assert list(generation.started.prompt_token_ids) == case["token_ids"], case["text"]


def test_the_command_says_where_the_weights_come_from(server: ServerProcess) -> None:
    printed = run_whence_well("model", "--target", server.target)
    assert "weights           gguf, Q4_1, dequantized\n" in printed


def test_a_directory_with_one_gguf_file_means_that_file(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / gguf.name).symlink_to(gguf)
    assert find_gguf(tmp_path) == tmp_path / gguf.name
    (tmp_path / "config.json").write_text("{}")
    assert find_gguf(tmp_path) is None


def test_a_directory_with_several_gguf_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigurationError, match=r"2 GGUF files.*a\.gguf, b\.gguf"):
        find_gguf(tmp_path)


def test_a_part_of_a_gguf_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m-00001-of-00002.gguf").touch()
    with pytest.raises(ConfigurationError, match="llama-gguf-split --merge"):
        find_gguf(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("length", [0, 3, 1000])
def test_a_truncated_file_is_named(gguf: Path, tmp_path: Path, length: int) -> None:
    damaged = truncate(gguf, tmp_path / "damaged.gguf", length)
    with pytest.raises(ConfigurationError, match=r"damaged\.gguf is not a GGUF file"):
        read_quantization(damaged)


def test_a_truncated_file_ends_the_start(gguf: Path, tmp_path: Path) -> None:
    process = ServerProcess(truncate(gguf, tmp_path / "damaged.gguf", 1000), tmp_path / "data")
    assert process.wait() == 2
    assert "damaged.gguf" in "".join(process.log)


def truncate(source: Path, target: Path, length: int) -> Path:
    """Write the first bytes of a file to another."""
    with source.open("rb") as file:
        target.write_bytes(file.read(length))
    return target
