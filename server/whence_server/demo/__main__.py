"""`make demo` and `make serve`: a small real model, served and watched."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from whence_server.demo.model import default_cache_dir, demo_model


def main() -> int:
    """Shows the demo, or keeps a server up on its model."""
    parser = argparse.ArgumentParser(prog="python -m whence_server.demo")
    parser.add_argument("command", nargs="?", choices=("show", "serve"), default="show")
    command = parser.parse_args().command
    model = demo_model()
    data_dir = default_cache_dir() / "demo-data"
    if command == "serve":
        return _serve(model, data_dir)
    from whence_server.demo.show import show

    return asyncio.run(show(model))


def _serve(model: Path, data_dir: Path) -> int:
    arguments = [
        *(sys.executable, "-m", "whence_server", "serve"),
        *("--model", str(model), "--model-name", "demo", "--data-dir", str(data_dir)),
    ]
    # The server takes this process's place, and so its signals and its exit status.
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter


if __name__ == "__main__":
    sys.exit(main())
