"""Commands behind `make demo`, `make demo-training`, `make serve` and `make serve-training`."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from whence.cli.trace_link import MEANING, choose_template
from whence_server.config.environment import copy_environment
from whence_server.demo.cache import find_cache_dir
from whence_server.demo.real_model import NAME, ensure_real_model
from whence_server.demo.serving import choose_page_flags, find_collector
from whence_server.domain.errors import ConfigurationError

_SHOWS = ("show", "training")


def main() -> int:
    """Run a show, or a server on the model of one."""
    parser = argparse.ArgumentParser(prog="python -m whence_server.demo")
    parser.add_argument(
        "command",
        nargs="?",
        choices=(*_SHOWS, "serve", "serve-training", "model"),
        default="show",
        help="show (the default) and serve use a real model, which `model` makes ready; training "
        "and serve-training use a model that is trained on record",
    )
    parser.add_argument("--trace-url", "--jaeger-url", metavar="TEMPLATE", help=MEANING)
    arguments = parser.parse_args()
    trace_url = _choose_trace_url(parser, arguments)
    try:
        return _run(arguments.command, trace_url)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2


def _choose_trace_url(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    if arguments.command not in _SHOWS:
        if arguments.trace_url is not None:
            parser.error(
                f"--trace-url does not go with {arguments.command}; give it to `whence generate`"
            )
        return ""
    try:
        trace_url = choose_template(arguments.trace_url)
    except ValueError as error:
        parser.error(str(error))
    if trace_url and not find_collector(copy_environment()):
        parser.error(
            "a trace URL needs a collector of your own, as the demo's own has no pages: set for "
            "example OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317"
        )
    return trace_url


def _run(command: str, trace_url: str) -> int:
    if command in {"training", "serve-training"}:
        return _run_training(command, trace_url)
    model = ensure_real_model()
    if command == "serve":
        return _serve(model, NAME, find_cache_dir() / f"{NAME}-data")
    if command == "show":
        from whence_server.demo.show import show

        asyncio.run(show(model, trace_url))
    else:
        print(model)
    return 0


def _run_training(command: str, trace_url: str) -> int:
    # Imported here, as the other commands need no part of a training.
    from whence_server.demo.model import ensure_demo_model, ensure_head_weights
    from whence_server.demo.training_show import show_training

    model = ensure_demo_model()
    head_weights = ensure_head_weights(model)
    if command == "serve-training":
        weigh = () if head_weights is None else ("--head-weights", str(head_weights))
        return _serve(model, "demo", find_cache_dir() / "demo-data", *weigh)
    asyncio.run(show_training(model, trace_url, head_weights))
    return 0


def _serve(model: Path, name: str, data_dir: Path, *flags: str) -> int:
    arguments = [
        *(sys.executable, "-m", "whence_server", "serve"),
        *("--model", str(model), "--model-name", name, "--data-dir", str(data_dir), *flags),
        *choose_page_flags(copy_environment()),
    ]
    # The server replaces this process, so that it gets the signals and gives the exit status.
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter


if __name__ == "__main__":
    sys.exit(main())
