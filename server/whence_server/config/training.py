"""Settings of `whence-server train`, read from flags.

The command line, and then the record, describe a training completely: environment variables with
which accelerate would change it are refused. A setting is a field of `TrainConfig`; its flag is
`--field-name`.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import (
    accept_choice,
    accept_whole,
    parse_switch,
    parse_text,
    spell_flag,
)
from whence_server.domain.errors import ConfigurationError

WITHOUT_WARMUP = ("constant",)
ACCELERATE = "ACCELERATE_"
"""Prefix of the environment variables that configure accelerate, and through it `Trainer`."""
_UNRECORDED = ("output", "resume", "signing_key")
"""Settings that are not part of a run's recipe."""


def _accept_number(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    """Return a parser of numbers within bounds; with `above`, `low` is excluded."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low < value if above else low <= value) or value > high:
            first = f"above {low:g}" if above else f"from {low:g}"
            raise ValueError(f"expected a number {first} up to {high:g}")
        return value

    return parse


def _parse_path(text: str) -> str:
    """Parse a path; return it as absolute, because the record may be read elsewhere."""
    return str(Path(parse_text(text)).expanduser().absolute())


def _parse_override(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*=.+", text, re.DOTALL):
        raise ValueError("expected NAME=VALUE, the value as JSON or a bare word")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The validated settings of a training."""

    output: str = declare_setting(
        "", _parse_path, "directory for the model, its record and its checkpoints", "DIR"
    )
    name: str = declare_setting(
        "",
        parse_text,
        "name of the run in the record (default: the name of the output directory)",
        "NAME",
    )
    texts: tuple[str, ...] = ()
    """Positional arguments: files and folders."""
    unusable: str = declare_setting(
        "refuse",
        accept_choice("refuse", "skip", "replace"),
        "treatment of files that are empty, binary or not UTF-8: refuse ends with the file and "
        "the offset, skip leaves them out, replace reads undecodable bytes as U+FFFD and "
        "refuses the rest",
        "WHAT",
    )
    tokenizer: str = declare_setting(
        "",
        _parse_path,
        "directory of an existing tokenizer (default: train one on the texts)",
        "DIR",
    )
    vocab_size: int = declare_setting(
        2048, accept_whole(257, 1 << 20), "number of entries of the tokenizer to train", "N"
    )
    from_model: str = declare_setting(
        "",
        _parse_path,
        "directory of a model or checkpoint to continue from, with its tokenizer",
        "DIR",
    )
    config: str = declare_setting(
        "", _parse_path, "config.json, or its directory, of a new model", "PATH"
    )
    model_type: str = declare_setting(
        "gpt2",
        parse_text,
        "transformers' model type of a new model; gpt2 has 4 layers of width 192 with 6 heads "
        "and no dropout, other types their own defaults",
        "TYPE",
    )
    config_override: tuple[str, ...] = declare_setting(
        (),
        _parse_override,
        "field of a new model's configuration to change; may be repeated",
        "NAME=VALUE",
    )
    block_size: int = declare_setting(
        512, accept_whole(2, 1 << 20), "number of tokens in an example", "N"
    )
    epochs: float = declare_setting(
        0.0, _accept_number(0, 1e6, above=True), "number of passes over the texts (default: 1)", "N"
    )
    max_steps: int = declare_setting(
        0, accept_whole(1), "number of optimizer steps, instead of --epochs", "N"
    )
    batch_size: int = declare_setting(
        4, accept_whole(1, 1 << 16), "number of examples in one forward and backward pass", "N"
    )
    gradient_accumulation: int = declare_setting(
        1,
        accept_whole(1, 1 << 16),
        "number of forward and backward passes in one optimizer step",
        "N",
    )
    learning_rate: float = declare_setting(
        1e-3, _accept_number(0, 10, above=True), "peak of the learning rate", "X"
    )
    scheduler: str = declare_setting(
        "cosine",
        accept_choice("linear", "cosine", "constant", "constant_with_warmup"),
        "schedule of the learning rate after its peak",
        "NAME",
    )
    warmup_steps: int = declare_setting(
        0, accept_whole(0), "number of steps in which the learning rate rises to its peak", "N"
    )
    weight_decay: float = declare_setting(0.0, _accept_number(0, 10), "weight decay of AdamW", "X")
    adam_beta2: float = declare_setting(
        0.999, _accept_number(0, 0.999999), "decay rate of AdamW's second moment", "X"
    )
    max_grad_norm: float = declare_setting(
        1.0,
        _accept_number(0, 1e6),
        "norm to which the gradient is clipped; 0 disables clipping",
        "X",
    )
    seed: int = declare_setting(
        0,
        accept_whole(0, (1 << 32) - 1),
        "seed of the weights, the order of examples and dropout",
        "N",
    )
    dtype: str = declare_setting(
        "float32", accept_choice("float32", "bfloat16"), "type of weights and arithmetic", "TYPE"
    )
    device: str = declare_setting(
        "cpu",
        accept_choice("cpu", "auto"),
        "device of the training: cpu, or auto for an accelerator if there is one",
        "DEVICE",
    )
    threads: int = declare_setting(
        0, accept_whole(0, 1024), "number of torch threads; 0 leaves the choice to torch", "N"
    )
    save_steps: int = declare_setting(
        200,
        accept_whole(1),
        "number of steps between checkpoints; the last step always has one",
        "N",
    )
    norm_stride: int = declare_setting(
        1,
        accept_whole(0),
        "number of steps between measurements of update norms; 0 disables them",
        "N",
    )
    eval: tuple[str, ...] = declare_setting(
        (), _parse_path, "file or folder to evaluate the model on; may be repeated", "PATH"
    )
    eval_steps: int = declare_setting(
        0, accept_whole(1), "number of steps between evaluations (default: --save-steps)", "N"
    )
    signing_key: str = declare_setting(
        "",
        _parse_path,
        "private key, PEM on the curve P-256, that signs the model's files (model.sig, OpenSSF "
        "model signing) and the head of its record (lineage.sig); it is made if it is missing "
        "(default: nothing is signed)",
        "FILE",
    )
    resume: bool = declare_setting(
        False,
        parse_switch,
        "continue the run in the output directory from its last whole checkpoint; settings "
        "that are not given are those of the record",
    )

    def make_recipe_json(self) -> str:
        """Return as JSON all settings on which the result of a run depends."""
        fields = dataclasses.asdict(self)
        return json.dumps({k: v for k, v in fields.items() if k not in _UNRECORDED})


def get_train_fields() -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of `TrainConfig` that are flags."""
    return tuple(field for field in dataclasses.fields(TrainConfig) if field.metadata)


def get_train_flag(name: str) -> str:
    """Return the flag or argument of a setting of `TrainConfig`."""
    return {"from_model": "--from", "texts": "TEXT"}.get(name) or spell_flag(name)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every setting to a parser; `read_train_settings` reads the parsed flags."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="text files or folders")
    for field in get_train_fields():
        how: dict[str, Any] = {"metavar": field.metadata["metavar"]}
        if field.metadata["parse"] is parse_switch:
            how = {"action": "store_const", "const": "true"}
        elif isinstance(field.default, tuple):
            how["action"] = "append"
        text = field.metadata["help"].replace("%", "%%")
        parser.add_argument(get_train_flag(field.name), dest=field.name, help=text, **how)


def read_train_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the given settings, by name; the others have their defaults.

    Raises:
        ConfigurationError: a setting is malformed; the message names it.
    """
    values: dict[str, Any] = {}
    if arguments.texts:
        values["texts"] = tuple(_parse("TEXT", text, _parse_path) for text in arguments.texts)
    for field in get_train_fields():
        given = getattr(arguments, field.name)
        if given is None:
            continue
        flag, parse = get_train_flag(field.name), field.metadata["parse"]
        if isinstance(given, list):
            values[field.name] = tuple(_parse(flag, text, parse) for text in given)
        else:
            values[field.name] = _parse(flag, given, parse)
    return values


def make_train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a new training from the given ones.

    Raises:
        ConfigurationError: a setting is missing, or two contradict.
    """
    config = TrainConfig(**values)
    if not config.output:
        raise ConfigurationError("--output is missing: give a directory for the model")
    if not config.texts:
        raise ConfigurationError("TEXT is missing: give text files or folders to train on")
    _refuse_both(values, "epochs", "max_steps", "both say how long to train")
    _refuse_both(values, "config", "model_type", "both say what a new model is like")
    _refuse_both(values, "tokenizer", "vocab_size", "the size is for one that is trained")
    for name in ("config", "model_type", "config_override", "tokenizer", "vocab_size"):
        _refuse_both(values, "from_model", name, "it has a model and a tokenizer already")
    if config.scheduler in WITHOUT_WARMUP and config.warmup_steps:
        raise ConfigurationError(
            f"--warmup-steps {config.warmup_steps}: --scheduler {config.scheduler} has no warm-up; "
            "constant_with_warmup has"
        )
    if config.max_steps and config.warmup_steps >= config.max_steps:
        raise ConfigurationError(
            f"--warmup-steps {config.warmup_steps}: the learning rate would never reach its peak "
            f"in --max-steps {config.max_steps}; give fewer"
        )
    if config.eval_steps and not config.eval:
        raise ConfigurationError("--eval-steps: --eval is missing; give --eval PATH")
    return config


def refuse_variables(environment: Mapping[str, str]) -> None:
    """Refuse environment variables that would change a training outside its recipe.

    Raises:
        ConfigurationError: there are some; the message names them.
    """
    found = sorted(name for name in environment if name.startswith(ACCELERATE))
    if found:
        raise ConfigurationError(
            f"{', '.join(found)}: whence-server train takes no settings from accelerate's "
            "environment variables, because its record would not have them: unset them, use flags"
        )


def restore_train_config(recipe_json: str, values: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a resumed training from its record and the given ones.

    Raises:
        ConfigurationError: the recipe is of another version, or a given setting differs.
    """
    try:
        recipe: dict[str, Any] = json.loads(recipe_json)
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()
        }
        config = TrainConfig(**fields)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"this version cannot resume the run: it cannot read the record's recipe: {error}"
        ) from error
    different = [
        f"{get_train_flag(name)} was {_format(getattr(config, name))}, is {_format(value)}"
        for name, value in values.items()
        if name not in _UNRECORDED and getattr(config, name) != value
    ]
    if different:
        raise ConfigurationError(
            f"--resume continues the run with its recorded settings: {'; '.join(different)}"
        )
    return dataclasses.replace(config, **{k: values[k] for k in _UNRECORDED if k in values})


def _refuse_both(values: Mapping[str, Any], one: str, other: str, reason: str) -> None:
    if one in values and other in values:
        raise ConfigurationError(
            f"{get_train_flag(one)} and {get_train_flag(other)} contradict: {reason}"
        )


def _parse(source: str, text: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigurationError(f"{source} {text!r}: {error}") from None


def _format(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
