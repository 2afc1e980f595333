"""`make demo` and `make serve`: a small real model, served and watched."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from whence.cli.trace_link import MEANING, trace_url_template
from whence_server.config.environment import process_environment
from whence_server.demo.model import default_cache_dir, demo_head_weights, demo_model


def main() -> int:
    """Show the demo, or keeps a server up on its model."""
    parser = argparse.ArgumentParser(prog="python -m whence_server.demo")
    parser.add_argument("command", nargs="?", choices=("show", "serve"), default="show")
    parser.add_argument("--trace-url", "--jaeger-url", metavar="TEMPLATE", help=MEANING)
    arguments = parser.parse_args()
    if arguments.command == "serve":
        if arguments.trace_url is not None:
            parser.error("--trace-url is for the show; after serve, give it to `whence generate`")
        model = demo_model()
        return _serve(model, demo_head_weights(model), default_cache_dir() / "demo-data")
    from whence_server.demo.show import collector_of, show

    try:
        trace_url = trace_url_template(arguments.trace_url)
    except ValueError as error:
        parser.error(str(error))
    if trace_url and not collector_of(process_environment()):
        parser.error(
            "a trace URL opens nothing while the demo collects its spans itself: say where they "
            "go, as in OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317"
        )
    model = demo_model()
    return asyncio.run(show(model, trace_url, demo_head_weights(model)))


def _serve(model: Path, head_weights: Path | None, data_dir: Path) -> int:
    arguments = [
        *(sys.executable, "-m", "whence_server", "serve"),
        *("--model", str(model), "--model-name", "demo", "--data-dir", str(data_dir)),
        *(() if head_weights is None else ("--head-weights", str(head_weights))),
    ]
    # The server takes this process's place, and so its signals and its exit status.
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter


if __name__ == "__main__":
    sys.exit(main())
