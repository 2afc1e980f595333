"""`whence model`: the served models, and `whence model wait`."""

import argparse
from typing import Any

from whence.cli.connection import connect
from whence.cli.exits import EXITS, OK
from whence.cli.json_lines import describe_message, format_json
from whence.summary import describe_upstream, escape
from whence.v1.model_pb2 import Model, ModelState


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `model` to the command line."""
    parser = commands.add_parser(
        "model",
        parents=[common],
        help="show the models that the server has, or wait for one",
        description="Show the models that the server has. With `wait`: wait until the server is "
        "reachable and has loaded its model.",
        epilog=f"--json prints the contract's Model messages, one on each line.\n\n{EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", nargs="?", choices=["wait"], help="wait for the model")
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="seconds to wait (default: %(default)g); for wait",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every served model; first wait until the default one is ready, if told so."""
    with connect(arguments) as client:
        wait = arguments.action == "wait"
        models = [client.wait_ready(arguments.timeout)] if wait else client.models()
    if arguments.json:
        print("".join(f"{format_json(describe_message(model))}\n" for model in models), end="")
    else:
        print("\n\n".join(map(_format_details, models)))
    return OK


def _format_details(model: Model) -> str:
    state = ModelState.Name(model.state) if model.state in ModelState.values() else "unknown"
    fields = {
        "model": model.model,
        "state": state.removeprefix("MODEL_STATE_").lower()
        + (f": {model.failure}" if model.failure else ""),
        **({"upstream": describe_upstream(model.upstream)} if model.HasField("upstream") else {}),
        "architecture": model.architecture or "unknown",
        "parameters": f"{model.num_parameters:,} in {model.num_layers} layers"
        if model.num_parameters
        else "unknown",
        "vocabulary": _format_number(model.vocabulary_size),
        "context": _format_number(model.max_context_length),
        "weights": _format_source(model),
        "arithmetic": f"{model.dtype} on {model.device}" if model.dtype else "unknown",
        "chat templates": ", ".join(model.chat_templates) or "none",
        **_describe_adapters(model),
        "batched": "yes" if model.batched else "no",
        "prefix cache": f"{model.prefix_cache_tokens:,} tokens"
        if model.prefix_cache_tokens
        else "off",
        "model digest": model.model_digest or "unknown",
        "weights digest": model.weights_digest or "unknown",
        "tokenizer digest": model.tokenizer_digest or "unknown",
        "training run": f"{model.training_run_id}, step {model.training_step:,}"
        if model.training_run_id
        else "unknown",
    }
    return "\n".join(f"{name:<16}  {escape(value)}" for name, value in fields.items())


def _format_number(number: int) -> str:
    return f"{number:,}" if number else "unknown"


def _describe_adapters(model: Model) -> dict[str, str]:
    return {
        f"adapter {adapter.name}": f"{adapter.adapter.peft_type}, digest {adapter.adapter.digest}"
        + (f", training run {adapter.training_run_id}" if adapter.training_run_id else "")
        for adapter in model.adapters
    }


def _format_source(model: Model) -> str:
    source = model.source
    parts = [source.format or "unknown", source.quantization]
    if source.dequantized:
        parts.append("dequantized")
    return ", ".join(filter(None, parts))
