"""Settings that name an upstream: exactly one thing computes the tokens."""

import argparse
from pathlib import Path

import pytest

from whence_server.config import ServeConfig, add_arguments, make_serve_config
from whence_server.domain.errors import ConfigurationError

URL = "http://127.0.0.1:8000/v1"


def read(*flags: str, **environment: str) -> ServeConfig:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return make_serve_config(parser.parse_args(flags), environment)


def test_an_upstream_takes_the_place_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    key = tmp_path / "key"
    key.write_text("secret")
    settings = read(
        *("--upstream", f"{URL}/", "--upstream-kind", "llama.cpp", "--upstream-retry", "2"),
        *("--upstream-model", "smol", "--tokenizer", str(tmp_path)),
        *("--upstream-weights", str(tmp_path), "--upstream-api-key-file", str(key)),
    )
    assert (settings.upstream, settings.upstream_kind) == (URL, "llama.cpp")
    assert (settings.upstream_retry, settings.tokenizer) == (2, tmp_path)
    assert settings.served_name == "smol"
    assert "secret" not in repr(settings)


def test_the_name_until_the_upstream_tells_its_own_is_its_address() -> None:
    assert read("--upstream", URL).served_name == "127.0.0.1:8000"
    assert read("--upstream", URL, "--model-name", "mine").served_name == "mine"
    assert read(WHENCE_UPSTREAM=URL).upstream == URL


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--model is missing"),
        (("--model", "m", "--upstream", URL), "exclude each other"),
        (("--model", "m", "--record-only"), "--model and --record-only exclude each other"),
        (("--record-only", "--dtype", "float32"), "--dtype does not go with --record-only"),
        (("--record-only", "--upstream-kind", "vllm"), "it is a setting of --upstream"),
        (("--record-only", "--http-listen", "127.0.0.1:0"), "--http-listen does not go with"),
        (("--upstream", URL, "--dtype", "float32"), "--dtype does not go with --upstream"),
        (("--upstream", URL, "--prefix-cache-tokens", "0"), "--prefix-cache-tokens does not go"),
        (("--model", "m", "--upstream-kind", "vllm"), "--upstream-kind does not go with --model"),
        (("--upstream", "127.0.0.1:8000"), "expected http://HOST:PORT"),
        (("--upstream", "ftp://h/v1"), "expected http://HOST:PORT"),
        (("--upstream", "http://h:99999"), "expected http://HOST:PORT"),
        (("--upstream", "http://me:pass@h/v1"), "--upstream-api-key-file"),
        (("--upstream", "http://h/v1?key=a"), "without user name, password, query"),
        (("--upstream", URL, "--upstream-kind", "tgi"), "expected one of vllm, llama.cpp"),
        (("--upstream", URL, "--tokenizer", "/nowhere"), "expected a tokenizer.json"),
        (("--upstream", URL, "--upstream-weights", "/nowhere"), "that the upstream serves"),
        (("--upstream", URL, "--upstream-api-key-file", "/nowhere"), "expected a file"),
        (("--upstream", URL, "--upstream-retry", "-1"), "expected a whole number from 0"),
    ],
)
def test_contradictions_and_malformed_settings_are_errors(
    flags: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(*flags)
    assert words in str(caught.value)


def test_a_server_may_only_record() -> None:
    assert read("--record-only").record_only
    assert read(WHENCE_RECORD_ONLY="true").served_name == ""


def test_an_adapter_does_not_go_with_an_upstream(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--adapter does not go with --upstream"):
        read("--upstream", URL, "--adapter", f"a={tmp_path}")
