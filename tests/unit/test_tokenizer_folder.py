"""A tokenizer read from its folder without transformers: against transformers itself."""

import json
from pathlib import Path

import pytest
from tiny_models import byte_level_tokenizer

from whence_server.domain.chat import ChatMessage
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.file_digests import digest_files, digest_model_files
from whence_server.engines.upstream.options import UpstreamOptions
from whence_server.launch import add_tokenizer
from whence_server.text.tokenizer import TextEncoder
from whence_server.text.tokenizer_folder import read_tokenizer_folder

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.bos_token = tokenizer.all_special_tokens[0]
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_ids_and_chats_are_those_of_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    found = read_tokenizer_folder(folder)
    encoder, oracle = TextEncoder(found.text), AutoTokenizer.from_pretrained(folder)
    text = "A naïve café — 你好 😀"
    assert encoder.encode(text) == oracle(text)["input_ids"]
    assert found.vocabulary_size == len(oracle)
    chat = [{"role": "user", "content": "Hi"}]
    rendered = encoder.render_chat([ChatMessage("user", "Hi")], {})
    assert rendered.text == oracle.apply_chat_template(chat, tokenize=False)


def test_one_file_is_a_tokenizer_without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").unlink()
    found = read_tokenizer_folder(folder / "tokenizer.json")
    assert found.text.chat_template is None
    assert found.names == ["tokenizer.json"]


def test_templates_are_read_from_files_or_the_configuration(folder: Path) -> None:
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    found = read_tokenizer_folder(folder)
    assert found.text.chat_template == {"default": TEMPLATE, "tool_use": "tools"}
    (folder / "chat_template.jinja").unlink()
    configuration = {
        "chat_template": [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}],
        "eos_token": {"content": "</s>"},
        "bos_token": "<s>",
        "pad_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    found = read_tokenizer_folder(folder)
    assert found.text.chat_template == {"default": "a", "rag": "b"}
    assert found.text.special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}


def test_the_digest_is_that_of_the_files(folder: Path) -> None:
    options = add_tokenizer(UpstreamOptions("http://h", "", "0.1"), folder)
    names = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert options.tokenizer_digest == digest_model_files(digest_files(folder, names))


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer_config.json", "["), ("tokenizer_config.json", "[]")],
)
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ConfigurationError, match=rf"--tokenizer .*{name}"):
        read_tokenizer_folder(folder)
