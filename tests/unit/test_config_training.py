"""Settings of a training: each is validated, has an effect, and is in the record's recipe."""

import argparse
from typing import Any

import pytest

from whence_server import config
from whence_server.config.training import refuse_variables
from whence_server.domain.errors import ConfigurationError


def given(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    config.add_train_arguments(parser)
    return config.read_train_settings(parser.parse_args(arguments))


MINIMAL = ("--output", "/out", "/text")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/text",), "--output is missing: give a directory"),
        (("--output", "/out"), "TEXT is missing: give text files"),
        ((*MINIMAL, "--epochs", "0"), "--epochs '0': expected a number above 0"),
        ((*MINIMAL, "--epochs", "nan"), "--epochs 'nan': expected a number above 0"),
        ((*MINIMAL, "--max-steps", "x"), "--max-steps 'x': expected a whole number from 1"),
        ((*MINIMAL, "--epochs", "1", "--max-steps", "2"), "--epochs and --max-steps contradict"),
        ((*MINIMAL, "--vocab-size", "256"), "--vocab-size '256': expected a whole number from 257"),
        ((*MINIMAL, "--tokenizer", "/t", "--vocab-size", "300"), "the size is for one that is"),
        (
            (*MINIMAL, "--config", "/c", "--model-type", "llama"),
            "both say what a new model is like",
        ),
        ((*MINIMAL, "--from", "/m", "--model-type", "llama"), "it has a model and a tokenizer"),
        ((*MINIMAL, "--config-override", "n_layer"), "'n_layer': expected NAME=VALUE"),
        ((*MINIMAL, "--scheduler", "steep"), "--scheduler 'steep': expected one of linear"),
        (
            (*MINIMAL, "--scheduler", "constant", "--warmup-steps", "3"),
            "--warmup-steps 3: --scheduler constant has no warm-up",
        ),
        (
            (*MINIMAL, "--max-steps", "5", "--warmup-steps", "5"),
            "--warmup-steps 5: the learning rate would never reach its peak in --max-steps 5",
        ),
        ((*MINIMAL, "--eval-steps", "3"), "--eval-steps: --eval is missing"),
        ((*MINIMAL, "--dtype", "float16"), "--dtype 'float16': expected one of float32, bfloat16"),
        ((*MINIMAL, "--learning-rate", "-1"), "--learning-rate '-1': expected a number above 0"),
        ((*MINIMAL, "--unusable", "ignore"), "--unusable 'ignore': expected one of refuse"),
    ],
)
def test_malformed_training_setting_is_an_error_with_its_flag(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        config.make_train_config(given(*arguments))
    assert message in str(raised.value)


def test_accelerates_variables_are_refused() -> None:
    refuse_variables({"PATH": "/bin", "OMP_NUM_THREADS": "1"})
    with pytest.raises(ConfigurationError, match=r"^ACCELERATE_A, ACCELERATE_MIXED_PRECISION: "):
        refuse_variables({"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_A": "", "PATH": ""})


def test_recipe_restores_settings_and_refuses_different_ones() -> None:
    settings = given(*MINIMAL, "--eval", "/e1", "--eval", "/e2", "--epochs", "0.5", "--seed", "3")
    made = config.make_train_config(settings)
    assert made.eval == ("/e1", "/e2")
    recipe = made.make_recipe_json()
    assert "output" not in recipe
    again = config.restore_train_config(recipe, given("--output", "/elsewhere", "--resume"))
    assert (again.output, again.resume, again.epochs) == ("/elsewhere", True, 0.5)
    assert config.restore_train_config(recipe, {"seed": 3, "output": "/out"}) == made
    with pytest.raises(ConfigurationError, match="--seed was 3, is 4; TEXT was /text, is /a /b"):
        config.restore_train_config(recipe, {"seed": 4, "texts": ("/a", "/b")})
    for broken in ("", "[]", '{"unknown": 1}'):
        with pytest.raises(ConfigurationError, match="cannot read the record's recipe"):
            config.restore_train_config(broken, {})


def test_paths_are_made_absolute_and_defaults_are_one_epoch() -> None:
    settings = config.make_train_config(given("--output", "out", "text"))
    assert settings.output.startswith("/")
    assert settings.texts[0].startswith("/")
    assert (settings.epochs, settings.max_steps) == (0.0, 0)
