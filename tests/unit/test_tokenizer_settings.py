"""Tokenizer files in the front, compared with `AutoTokenizer` on the same directory."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from text_oracles import FAMILIES
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from whence_server.domain.errors import ConfigurationError, InvalidRequestError
from whence_server.engines.transformers.describing import read_text_files
from whence_server.engines.transformers.tokenizer_check import check_tokenizer
from whence_server.engines.transformers.weights import list_tokenizer_files
from whence_server.text.cleanup import CleaningDetokenizer, clean_up
from whence_server.text.tokenizer import TextTokenizer

ROOT = Path(__file__).parents[2]
KEYS = set(
    re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/tokenizers.md").read_text("utf-8"), re.MULTILINE)
)
ARGUMENTS_OF_LOADING = {
    *("_commit_hash", "_from_auto", "_from_pipeline", "cache_dir", "code_revision", "config"),
    *("gguf_file", "is_local", "local_files_only", "mistral_format", "proxies", "revision"),
    *("subfolder", "token", "tokenizer_type", "trust_remote_code"),
}
"""Keys that callers of `from_pretrained` give; in a file they are overridden or refused."""
PARTS_OF_TOKENIZER_JSON = {
    *("_json_padding", "_json_truncation", "_spm_precompiled_charsmap", "merges", "merges_file"),
    *("post_processor", "tokenizer", "tokenizer_file", "tokenizer_object", "tokenizer_padding"),
    *("tokenizer_truncation", "vocab", "vocab_file", "normalizer_file"),
}
"""Keys that transformers sets from the files beside the configuration."""
OTHER_TASKS = {
    *("extra_ids", "language", "mask_token_sent", "offset", "predict_timestamps", "src_lang"),
    *("task", "tgt_lang"),
}
"""Keys of speech, translation and summarisation classes, which are exported as applied."""

TEXTS = [
    "The  quick brown fox , isn't it ? I 'm sure that 's 12 . do n't ' x ' we 've !",
    " naïve café — “quotes” 你好 😀 def f(x):\n    return x",
    "<s>a</s> <tool call>b</s>c <x>d<x> <y> e <|z|>",
    "",
]
SPECIAL = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False}


def token(content: str, **flags: bool) -> dict[str, object]:
    return {**SPECIAL, "content": content, "single_word": False, "special": True} | flags


VALUES: dict[str, list[Any]] = {
    "split_special_tokens": [True, False],
    "clean_up_tokenization_spaces": [True, False],
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": [True],
    "add_bos_token": [True, False],
    "add_eos_token": [True, False],
    "add_prefix_space": [True, False],
    "added_tokens_decoder": [
        {"5": {**token("<x>", special=False), "__type": None}},
        {"1": {**token("</s>", lstrip=True, rstrip=True), "__type": None}},
    ],
    "additional_special_tokens": [["<x>", "<y>"]],
    "extra_special_tokens": [["<x>"], {"image_token": "<y>"}, [token("<x>", lstrip=True)]],
    "bos_token": ["<x>", "<s>", token("<y>", rstrip=True)],
    "eos_token": ["</s>", "<x>"],
    "unk_token": ["<unk>"],
    "pad_token": ["<x>", "</s>"],
    "sep_token": ["<x>"],
    "cls_token": ["<x>"],
    "mask_token": [token("<x>", lstrip=True)],
    "fill_token": ["<x>"],
    "do_lower_case": [True],
    "keep_accents": [False],
    "remove_space": [True],
    "strip_accents": [True],
    "tokenize_chinese_chars": [False],
    "trim_offsets": [True],
    "fix_mistral_regex": [True, False],
    "errors": ["strict", "ignore"],
    "legacy": [True, False],
    "model_max_length": [3],
    "max_len": [3],
    "max_length": [3],
    "stride": [1],
    "truncation_side": ["left"],
    "truncation_strategy": ["longest_first"],
    "padding_side": ["left"],
    "pad_to_multiple_of": [8],
    "pad_token_type_id": [1],
    "model_input_names": [["input_ids"]],
    "use_default_system_prompt": [True],
    "spaces_between_special_tokens": [True, False],
    "sp_model_kwargs": [{}],
    "processor_class": ["SomeProcessor"],
    "response_schema": [{"type": "object"}],
    "response_template": ["x"],
    "chat_control_tokens": [["<x>"]],
    "chat_template": ["{{ messages[0].content }}"],
    "name_or_path": ["elsewhere"],
    "init_inputs": [[]],
    "use_fast": [False],
    "verbose": [True],
}
NOT_VALUES = {
    "auto_map": "code of its own, checked at the start",
    "backend": "set by transformers",
    "fast_tokenizer_files": "a test of its own",
    "files_loaded": "set by transformers",
    "model_specific_special_tokens": "what `extra_special_tokens` becomes",
    "tokenizer_class": "a test of its own",
    "unk_id": "read only without a tokenizer.json",
}


def keys_read_by(function: Callable[..., object]) -> set[str]:
    """Return the keys of a configuration that a function of transformers reads."""
    names = {"kwargs", "init_kwargs", "local_kwargs", "tokenizer_config", "init_configuration"}
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="pop" | "get" | "setdefault"),
                args=[ast.Constant(value=str(key)), *_],
            ) if name in names:
                found.add(key)
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))) if (
                name in names
            ):
                found.add(key)
            case ast.Compare(
                left=ast.Constant(value=str(key)), comparators=[ast.Name(id=name)]
            ) if name in names:
                found.add(key)
    return found


def keys_of_transformers() -> set[str]:
    base, fast = PreTrainedTokenizerBase, PreTrainedTokenizerFast
    found = {*base.SPECIAL_TOKENS_ATTRIBUTES}
    for function in (
        base.__init__,
        base.from_pretrained,
        base._from_pretrained,
        fast.__init__,
        fast.convert_to_native_format,
        fast._convert_from_sentencepiece,
        fast._convert_from_tiktoken,
        AutoTokenizer.from_pretrained,
    ):
        found |= keys_read_by(function)
    for config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = TOKENIZER_MAPPING.get(config, None)
        if kind is not None and issubclass(kind, fast):
            found |= set(inspect.signature(kind.__init__).parameters)
    return found - {"self", "args", "kwargs"}


def test_every_key_that_transformers_reads_is_listed() -> None:
    read = keys_of_transformers() - ARGUMENTS_OF_LOADING - PARTS_OF_TOKENIZER_JSON - OTHER_TASKS
    assert len(read) > 30
    assert read - KEYS == set()


def test_every_listed_key_is_tested() -> None:
    assert {*VALUES, *NOT_VALUES} - {"fill_token"} == KEYS


def saved(directory: Path, family: str, **changes: object) -> Path:
    FAMILIES[family]().save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | changes
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def compare(directory: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    check_tokenizer(theirs)
    files = read_text_files(AutoTokenizer.from_pretrained(directory))
    ours = TextTokenizer(files, len(theirs) + 7)
    for text in TEXTS:
        for adding in (True, False):
            expected = theirs(text, add_special_tokens=adding)["input_ids"]
            assert ours.encode(text, add_special_tokens=adding) == expected
        ids = [*theirs(text)["input_ids"], *theirs.all_special_ids]
        expected_text = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == expected_text
        assert "".join(piece.text for piece in ours.split_prompt(ids)) == expected_text


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "word_piece"])
@pytest.mark.parametrize("key", VALUES)
def test_setting_has_the_same_effect_as_in_transformers(
    key: str, family: str, tmp_path: Path
) -> None:
    for value in VALUES[key]:
        changes = {key: value}
        if "for_bpe" in key:
            changes["clean_up_tokenization_spaces"] = True
        compare(saved(tmp_path, family, **changes))


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("GPT2Tokenizer", "byte_level"),
        ("Qwen2Tokenizer", "byte_level"),
        ("GPTNeoXTokenizer", "byte_level"),
        ("CohereTokenizer", "byte_level"),
        ("LlamaTokenizer", "byte_fallback_bpe"),
        ("GemmaTokenizer", "byte_fallback_bpe"),
        ("CodeLlamaTokenizer", "byte_fallback_bpe"),
        ("BertTokenizer", "word_piece"),
    ],
)
def test_a_class_is_exported_with_its_own_settings(kind: str, family: str, tmp_path: Path) -> None:
    for changes in ({}, {"add_prefix_space": True}, {"legacy": False}, {"do_lower_case": True}):
        for split in (False, True):
            compare(
                saved(tmp_path, family, tokenizer_class=kind, split_special_tokens=split, **changes)
            )


def test_settings_that_change_text_do_change_it(tmp_path: Path) -> None:
    """Check that settings have an effect: the other tests pass if both sides ignore one."""
    plain = TextTokenizer(
        read_text_files(AutoTokenizer.from_pretrained(saved(tmp_path, "word_piece"))), 300
    )
    changed = saved(
        tmp_path, "word_piece", split_special_tokens=True, clean_up_tokenization_spaces=True
    )
    settings = read_text_files(AutoTokenizer.from_pretrained(changed))
    assert settings.split_special_tokens
    assert settings.cleans_up_spaces
    other = TextTokenizer(settings, 300)
    assert plain.encode("a[SEP]b") != other.encode("a[SEP]b")
    ids = plain.encode("the ' s", add_special_tokens=False)
    assert (plain.decode(ids), other.decode(ids)) == ("the ' s", "the's")


def test_a_chosen_tokenizer_file_is_read(tmp_path: Path) -> None:
    saved(tmp_path, "byte_level", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    FAMILIES["byte_level_normalized"]().save(str(tmp_path / "tokenizer.4.0.0.json"))
    compare(tmp_path)
    assert "tokenizer.4.0.0.json" in list_tokenizer_files(tmp_path), "the digest covers it"


def test_class_with_its_own_code_is_refused_by_name(tmp_path: Path) -> None:
    class Shouting(PreTrainedTokenizerFast):
        def _decode(self, *args: object, **kwargs: object) -> str:
            return super()._decode(*args, **kwargs).upper()

    class Stuttering(PreTrainedTokenizerFast):
        def _encode_plus(self, text: str, **kwargs: object) -> Any:
            return super()._encode_plus(text + text, **kwargs)

    class Cleaning(PreTrainedTokenizerFast):
        def clean_up_tokenization(self, text: str) -> str:
            return text.replace("  ", " ")

    for kind in (Shouting, Stuttering, Cleaning):
        made = kind.from_pretrained(
            saved(tmp_path, "word_piece", clean_up_tokenization_spaces=kind is Cleaning)
        )
        with pytest.raises(ConfigurationError, match=f"{kind.__name__} has code of its own"):
            check_tokenizer(made)


def test_a_class_that_fails_on_a_sample_is_refused_by_name(tmp_path: Path) -> None:
    class Failing(PreTrainedTokenizerFast):
        def _encode_plus(self, text: str, **kwargs: object) -> Any:
            raise ValueError("no text today")

    made = Failing.from_pretrained(saved(tmp_path, "byte_level"))
    with pytest.raises(ConfigurationError, match=r"Failing .* fails on .* no text today"):
        check_tokenizer(made)


def test_fill_token_in_a_prompt_is_refused(tmp_path: Path) -> None:
    """CodeLlama's class splits a text with a fill token into prefix and suffix."""
    directory = saved(tmp_path, "byte_fallback_bpe", tokenizer_class="CodeLlamaTokenizer")
    tokenizer = TextTokenizer(read_text_files(AutoTokenizer.from_pretrained(directory)), 400)
    with pytest.raises(InvalidRequestError, match="<FILL_ME>"):
        tokenizer.encode("def f():<FILL_ME>")
    plain = saved(tmp_path, "byte_fallback_bpe", fill_token="<FILL_ME>")
    assert read_text_files(AutoTokenizer.from_pretrained(plain)).fill_token == ""


PUNCTUATION = st.text(alphabet=" .?!,'ntmsverx", max_size=30)


@given(text=PUNCTUATION)
def test_cleans_up_as_transformers_does(text: str) -> None:
    assert clean_up(text) == PreTrainedTokenizerBase.clean_up_tokenization(None, text)


class Parts:
    """Detokenizer whose tokens are the given texts; one is held back until the end."""

    num_held_bytes = 0

    def __init__(self, parts: list[str], held_text: str) -> None:
        self.parts = parts
        self.held_text = held_text

    def push(self, token_id: int) -> str:
        return self.parts[token_id]

    def flush(self) -> str:
        return self.held_text


@given(parts=st.lists(PUNCTUATION, max_size=8), held=PUNCTUATION)
def test_cleaned_pieces_join_to_the_cleaned_text(parts: list[str], held: str) -> None:
    cleaning = CleaningDetokenizer(Parts(parts, held))
    pieces = [cleaning.push(index) for index in range(len(parts))]
    expected = clean_up("".join(parts) + held)
    assert "".join(pieces) + cleaning.held_text == expected
    assert "".join(pieces) + cleaning.flush() == expected


@given(text=PUNCTUATION)
def test_no_text_is_held_after_a_letter(text: str) -> None:
    text += "b"
    cleaning = CleaningDetokenizer(Parts(list(text), ""))
    released = "".join(cleaning.push(index) for index in range(len(text)))
    assert released == clean_up(text)
    assert (cleaning.held_text, cleaning.num_held_bytes) == ("", 0)
