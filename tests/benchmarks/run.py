"""`make bench`: measures the figures of the README.

Ratios count; absolute times are this machine's.

python tests/benchmarks/run.py [--only PART ...] [--workloads S M L R] [--runs 5] [--device cpu]
"""

import argparse
import importlib.util
import io
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from workloads import CHOICES, list_names

# Each is a module of this folder, imported when its turn comes: some load torch.
PARTS: dict[str, Callable[[argparse.Namespace], tuple[object, ...]]] = {
    "startup": lambda options: (options.workloads,),
    "start": lambda options: (options.runs,),
    "storage": lambda options: (),
    "archive": lambda options: (),
    "spans": lambda options: (options.runs,),
    "forms": lambda options: (options.runs,),
    "export": lambda options: (options.outage_seconds,),
    "lineage": lambda options: (options.runs,),
    "faults": lambda options: (),
    "overhead": lambda options: (options.runs, options.workloads),
    "sealing": lambda options: (options.runs, options.workloads),
    "hooks": lambda options: (options.runs, options.workloads),
    "page": lambda options: (),
    "engine": lambda options: (options.runs, options.workloads),
    "real": lambda options: (options.runs,),
    "int8": lambda options: (options.runs,),
    "throughput": lambda options: (options.runs, options.workloads),
    "choosing": lambda options: (options.runs, options.workloads),
    "shares": lambda options: (options.runs, options.workloads),
    "front": lambda options: (options.runs, options.workloads),
    "access": lambda options: (options.runs, options.workloads),
    "sidecar": lambda options: (options.runs, options.workloads),
    "peers": lambda options: (options.runs, options.workloads),
    "latency": lambda options: (options.workloads,),
    "scaling": lambda options: (options.runs, options.workloads, options.plot),
    "internals": lambda options: (options.runs, options.workloads),
    "adapters": lambda options: (options.runs, options.workloads),
    "constraints": lambda options: (options.runs,),
    "redaction": lambda options: (options.runs,),
    "prefix": lambda options: (options.runs,),
}
"""Benchmarks in order, each with the arguments that it takes from the options."""
ANYWHERE = {"adapters", "engine", "internals", "latency", "prefix", "scaling", "throughput"}
"""Benchmarks that also run on other devices than the CPU."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--workloads", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="where the engine and its peers compute")
    parser.add_argument("--outage-seconds", type=float, default=60.0)
    parser.add_argument("--plot", type=Path, help="also draw the scaling, as SVG (matplotlib)")
    options = parser.parse_args()
    if options.device != "cpu" and not set(options.only) <= ANYWHERE:
        parser.error(f"--device: add --only with some of {', '.join(sorted(ANYWHERE))}")
    os.environ["BENCH_DEVICE"] = options.device
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed; pip install matplotlib")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # into a file or a pipe, too: a row as it comes
    print(
        f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, torch "
        f"{version('torch')}, transformers {version('transformers')}; 32 prompt tokens, "
        f"128 new, temperature 0.8, top-p 0.95; medians of {options.runs} alternating runs\n"
    )
    options.workloads = list_names(options.workloads)
    for name, arguments in PARTS.items():
        if name in options.only:
            began = time.monotonic()
            importlib.import_module(name).run(*arguments(options))
            print(f"({name} took {time.monotonic() - began:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
