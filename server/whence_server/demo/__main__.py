"""Commands behind `make demo` and `make serve`."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from whence.cli.trace_link import MEANING, choose_template
from whence_server.config.environment import copy_environment
from whence_server.demo.cache import find_cache_dir
from whence_server.demo.model import ensure_demo_model, ensure_head_weights
from whence_server.demo.real_model import ensure_real_model
from whence_server.domain.errors import ConfigurationError


def main() -> int:
    """Run the demo, or a server on its model."""
    parser = argparse.ArgumentParser(prog="python -m whence_server.demo")
    parser.add_argument("command", nargs="?", choices=("show", "serve", "model"), default="show")
    parser.add_argument("--trace-url", "--jaeger-url", metavar="TEMPLATE", help=MEANING)
    arguments = parser.parse_args()
    if arguments.command == "model":
        return _make_real_model()
    if arguments.command == "serve":
        if arguments.trace_url is not None:
            parser.error("--trace-url does not go with serve; give it to `whence generate`")
        model = ensure_demo_model()
        return _serve(model, ensure_head_weights(model), find_cache_dir() / "demo-data")
    from whence_server.demo.show import find_collector, show

    try:
        trace_url = choose_template(arguments.trace_url)
    except ValueError as error:
        parser.error(str(error))
    if trace_url and not find_collector(copy_environment()):
        parser.error(
            "a trace URL needs a collector of your own, as the demo's own has no pages: set for "
            "example OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317"
        )
    model = ensure_demo_model()
    return asyncio.run(show(model, trace_url, ensure_head_weights(model)))


def _make_real_model() -> int:
    try:
        print(ensure_real_model())
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _serve(model: Path, head_weights: Path | None, data_dir: Path) -> int:
    arguments = [
        *(sys.executable, "-m", "whence_server", "serve"),
        *("--model", str(model), "--model-name", "demo", "--data-dir", str(data_dir)),
        *(() if head_weights is None else ("--head-weights", str(head_weights))),
    ]
    # The server replaces this process, so that it gets the signals and gives the exit status.
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter


if __name__ == "__main__":
    sys.exit(main())
