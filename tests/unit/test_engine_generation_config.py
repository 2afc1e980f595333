"""Treatment of every field of transformers' GenerationConfig, and refusal of wrong values."""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_harness import engine_options
from transformers import GenerationConfig

from whence_server.domain.decoding import (
    Configured,
    GenerationDefaults,
)
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.generation_config import (
    check_batch,
    check_file,
    read_defaults,
)
from whence_server.engines.transformers.generation_fields import APPLIED, HARMLESS, REFUSED
from whence_server.engines.transformers.loading import load

PAGE = Path(__file__).parents[2] / "docs" / "generation-config.md"
VOCABULARY = 100


def refusal(directory: Path, **fields: Any) -> str:
    path = directory / "generation_config.json"
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigurationError) as caught:
        check_file(directory)
    assert caught.value.message.startswith(f"{path} cannot be applied: ")
    assert "\n" not in caught.value.message
    return caught.value.message


def defaults(**fields: Any) -> GenerationDefaults:
    return read_defaults(GenerationConfig(**fields), VOCABULARY)


def test_every_field_of_transformers_is_in_one_table() -> None:
    known = [*APPLIED, *REFUSED, *HARMLESS]
    assert sorted(known) == sorted(vars(GenerationConfig()))
    assert len(known) == len(set(known))


def test_the_docs_list_every_field_under_its_treatment() -> None:
    listed: dict[str, set[str]] = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        rows = re.findall(r"^\| `([^|]*)` \|", section, re.MULTILINE)
        listed[section.splitlines()[0]] = {name for row in rows for name in row.split("`, `")}
    tables = {"Applied": APPLIED, "Refused": REFUSED, "Harmless": HARMLESS}
    assert listed == {title: set(table) for title, table in tables.items()}


def test_unset_fields_have_the_defaults_of_generate() -> None:
    theirs = GenerationConfig._get_default_generation_params()
    ours = defaults()
    for name in ("do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams"):
        assert getattr(ours, name) == theirs[name], name
    for name in ("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "early_stopping"):
        assert getattr(ours, name) == theirs[name], name
    for name in ("num_return_sequences", "epsilon_cutoff", "eta_cutoff", "min_length"):
        assert getattr(ours, name) == theirs[name], name
    assert ours == GenerationDefaults()


def test_defaults_come_from_the_generation_config() -> None:
    assert defaults(
        do_sample=True,
        temperature=0.6,
        top_k=20,
        repetition_penalty=1.1,
        eos_token_id=[5, 9, 900, -1],
        stop_strings="END",
        suppress_tokens=[3, 900],
        sequence_bias=[[[1, 2], 0.5], [[4], 1.0], [[1, 2], 0.7]],
        forced_eos_token_id=7,
        min_new_tokens=-1,
        epsilon_cutoff=1.0,
    ) == GenerationDefaults(
        do_sample=True,
        temperature=0.6,
        top_k=20,
        repetition_penalty=1.1,
        eos_token_ids=(5, 9),
        stop=("END",),
        min_new_tokens=0,
        configured=Configured(
            suppress_token_ids=(3,),
            sequence_biases=(((1, 2), 0.7), ((4,), 1.0)),
            forced_eos_token_ids=(7,),
        ),
    )


REFUSALS: list[tuple[str, Any]] = [
    ("max_time", 3.0),
    ("guidance_scale", 1.5),
    ("watermarking_config", {"bias": 2.5}),
    ("token_healing", True),
    ("encoder_repetition_penalty", 1.2),
    ("encoder_no_repeat_ngram_size", 2),
    ("remove_invalid_values", True),
    ("exponential_decay_length_penalty", [5, 1.1]),
    ("is_assistant", True),
    ("assistant_ensemble_weight", 0.5),
    ("penalty_alpha", 0.6),
    ("dola_layers", "low"),
    ("diversity_penalty", 0.5),
    ("num_beam_groups", 2),
    ("constraints", []),
    ("force_words_ids", [[4]]),
    ("low_memory", True),
    ("cache_implementation", "quantized"),
    ("compile_config", {}),
]


def test_every_refused_field_has_a_test_case() -> None:
    assert [name for name, _ in REFUSALS] == list(REFUSED)


@pytest.mark.parametrize(("name", "value"), REFUSALS)
def test_unsupported_fields_that_would_change_tokens_are_refused_by_name(
    tmp_path: Path, name: str, value: Any
) -> None:
    assert f"{name} is {json.dumps(value)}, which is not applied; " in refusal(
        tmp_path, **{name: value}
    )


NEUTRAL = {
    "guidance_scale": 1.0,
    "token_healing": False,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "remove_invalid_values": False,
    "penalty_alpha": 0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "low_memory": False,
    "cache_implementation": "static",
    "max_time": None,
    "constraints": None,
}


def test_neutral_values_and_harmless_fields_are_accepted(tmp_path: Path) -> None:
    harmless = {"use_cache": False, "output_scores": True, "pad_token_id": 3, "use_mtp": True}
    fields = NEUTRAL | harmless | {"transformers_version": "4.1.0", "_from_model_config": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    check_file(tmp_path)


WRONG: list[tuple[str, Any, str]] = [
    ("max_length", "20", "a whole number, at least 1"),
    ("max_new_tokens", 0, "a whole number, at least 1"),
    ("max_new_tokens", 2.5, "a whole number"),
    ("max_new_tokens", True, "a whole number"),
    ("min_length", [], "a whole number"),
    ("min_new_tokens", "3", "a whole number"),
    ("early_stopping", "soon", 'true, false or "never"'),
    ("early_stopping", 1, 'true, false or "never"'),
    ("stop_strings", [3], "a string or a list"),
    ("stop_strings", "", "a string or a list"),
    ("stop_strings", [], "not empty"),
    ("stop_strings", ["x"] * 65, "a list of at most 64"),
    ("stop_strings", "x" * 1025, "1 to 1024 characters"),
    ("do_sample", "yes", "true or false"),
    ("num_beams", 0, "a whole number, at least 1"),
    ("temperature", "hot", "a number"),
    ("temperature", math.nan, "a number"),
    ("temperature", 1e300, "a number that float32 can hold"),
    ("top_k", -1, "at least 0, which is off"),
    ("top_k", 10**12, "a whole number"),
    ("top_k", 5.0, "a whole number"),
    ("top_p", [], "a number"),
    ("min_p", "x", "a number"),
    ("top_h", 0, "in (0, 1]"),
    ("top_h", 1.5, "in (0, 1]"),
    ("typical_p", {}, "a number"),
    ("epsilon_cutoff", "x", "a number"),
    ("eta_cutoff", True, "a number"),
    ("repetition_penalty", 0, "a number from 0.01 to 100"),
    ("repetition_penalty", "1.1", "a number from 0.01 to 100"),
    ("repetition_penalty", 0.001, "a number from 0.01 to 100"),
    ("repetition_penalty", 3.4e38, "a number from 0.01 to 100"),
    ("repetition_penalty", 2, "written with a decimal point (2.0, not 2)"),
    ("length_penalty", 101, "from -100 to 100"),
    ("no_repeat_ngram_size", 1.5, "a whole number"),
    ("no_repeat_ngram_size", 129, "at most 128"),
    ("bad_words_ids", [], "not empty"),
    ("bad_words_ids", [3], "lists of token ids"),
    ("bad_words_ids", [[]], "none empty"),
    ("bad_words_ids", [[-1]], "token ids"),
    ("sequence_bias", {"3": 1.0}, "pairs"),
    ("sequence_bias", [[[3], "much"]], "pairs"),
    ("sequence_bias", [[3, 1.0]], "pairs"),
    ("sequence_bias", [[[3], math.inf]], "pairs"),
    ("sequence_bias", [[[3], 3.4e38]], "from -1e+09 to 1e+09 or -Infinity"),
    ("sequence_bias", [[[3], 2]], "written with a decimal point"),
    ("sequence_bias", [], "not empty"),
    ("renormalize_logits", 1, "true or false"),
    ("forced_bos_token_id", [3], "a token id"),
    ("forced_eos_token_id", "3", "a token id"),
    ("forced_eos_token_id", [], "a token id"),
    ("suppress_tokens", 3, "a list of token ids"),
    ("suppress_tokens", [-1], "a list of token ids"),
    ("begin_suppress_tokens", [1.5], "a list of token ids"),
    ("num_return_sequences", 65, "from 1 to 64"),
    ("num_return_sequences", 0, "from 1 to 64"),
    ("eos_token_id", "<s>", "a token id"),
    ("eos_token_id", True, "a token id"),
    ("eos_token_id", [], "not empty"),
    ("eos_token_id", [1, None], "a token id"),
]


def test_every_applied_field_has_a_test_case() -> None:
    assert {name for name, _, _ in WRONG} == set(APPLIED)


@pytest.mark.parametrize(("name", "value", "rule"), WRONG)
def test_a_wrong_value_is_refused_with_its_rule(
    tmp_path: Path, name: str, value: Any, rule: str
) -> None:
    message = refusal(tmp_path, **{name: value})
    assert f"{name} is " in message
    assert rule in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 1e-12),
        ("temperature", 1e20),
        ("temperature", 2),
        ("top_p", 0),
        ("min_p", 1.5),
        ("typical_p", -0.1),
    ],
)
def test_sampling_ranges_are_checked_if_the_model_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: float
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    check_file(tmp_path)
    with caplog.at_level(logging.WARNING):
        defaults(**{name: value})
    assert f"sampling requests must set their own: {name} ({value!r})" in caplog.text
    assert f"{name} is {value!r}" in refusal(tmp_path, do_sample=True, **{name: value})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_return_sequences": 3}, "Greedy methods"),
        ({"num_beams": 2, "num_return_sequences": 3}, "has to be smaller or equal to `num_beams`"),
        ({"suppress_tokens": [5], "forced_eos_token_id": 5}, "is also in `suppress_tokens`"),
        ({"cache_implementation": "nonsense"}, "Invalid `cache_implementation`"),
        ({"streamer": 1}, "`streamer` is not a valid argument"),
    ],
)
def test_what_transformers_does_not_read_is_told_as_the_files(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, **fields)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, top_k=-1, max_time=1, temperature="x")
    assert all(name in message for name in ("top_k", "max_time", "temperature"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"do_sample": True, "num_beams": 2}, "beams are not sampled"),
        ({"num_beams": 2, "stop_strings": "x"}, "stop_strings do not go with num_beams"),
        ({"bad_words_ids": [[100]]}, "bad_words_ids has the id 100; ids go up to 99"),
        ({"sequence_bias": [[[1, 100], 1.0]]}, "sequence_bias has the id 100"),
        ({"forced_bos_token_id": 100}, "forced_bos_token_id has the id 100"),
        ({"forced_eos_token_id": [3, 100]}, "forced_eos_token_id has the id 100"),
        (
            {"num_beams": 2, "length_penalty": -100.0, "max_new_tokens": 8},
            "length_penalty is -100; 8 new tokens to that power must be from 1e-20 to 1e+20",
        ),
        ({"num_beams": 2, "length_penalty": 50.0}, "length_penalty is 50; 256 new tokens"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        defaults(**fields)


def test_defaults_that_need_more_rows_than_decode_together_are_refused(tmp_path: Path) -> None:
    beams = defaults(num_beams=17)
    samples = defaults(do_sample=True, num_return_sequences=17)
    for taken in (beams, samples):
        check_batch(taken, 17, tmp_path)
    with pytest.raises(ConfigurationError, match=r"num_beams is 17, .*--max-batch-size 16"):
        check_batch(beams, 16, tmp_path)
    with pytest.raises(ConfigurationError, match=r"num_return_sequences is 17, "):
        check_batch(samples, 16, tmp_path)


def test_more_sequences_than_beams_are_refused() -> None:
    config = GenerationConfig(num_beams=2)
    config.num_return_sequences = 3
    with pytest.raises(ConfigurationError, match="it must be at most 2, num_beams"):
        read_defaults(config, VOCABULARY)


@pytest.mark.parametrize("content", ["{", "[]", "null", "\x00"])
def test_a_file_that_is_not_an_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"generation_config\.json (must hold|is not)"):
        check_file(tmp_path)


def test_fields_that_transformers_does_not_know_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"chat_format": "chatml", "temprature": 0.5, "_commit_hash": "00"}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    with caplog.at_level(logging.WARNING):
        check_file(tmp_path)
    [record] = caplog.records
    assert record.getMessage().endswith(
        "that transformers' generate does not know are ignored: chat_format, temprature"
    )


def test_a_wrong_field_is_refused_before_weights_are_read(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_model("gpt2"), tmp_path / "model"))
    (directory / "generation_config.json").write_text('{"top_k": -1}')
    (directory / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ConfigurationError, match=r"top_k is -1; it must be"):
        load(engine_options(directory))


def test_a_config_json_that_holds_generation_settings_is_read_as_transformers_does(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_model("gpt2"), tmp_path / "model"))
    (directory / "generation_config.json").unlink()
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"suppress_tokens": [4]}))
    assert load(engine_options(directory)).info.defaults.configured.suppress_token_ids == (4,)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"guidance_scale": 3.0}))
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be applied: guidance_scale"):
        load(engine_options(directory))
