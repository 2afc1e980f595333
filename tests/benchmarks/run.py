"""`make bench`: measures the figures of the README.

Ratios count; absolute times are this machine's.

python tests/benchmarks/run.py [--only PART ...] [--workloads S M L] [--runs 5]
"""

import argparse
import importlib.util
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

PARTS = ("startup", "storage", "export", "lineage", "engine", "throughput", "latency", "scaling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workloads", nargs="+", choices=("S", "M", "L"), default=("S", "M", "L"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--outage-seconds", type=float, default=60.0)
    parser.add_argument("--plot", type=Path, help="also draw the scaling, as SVG (matplotlib)")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot: matplotlib is not installed; pip install matplotlib")
    import torch
    import transformers

    print(
        f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; float32, 32 prompt tokens, "
        f"128 new, temperature 0.8, top-p 0.95; medians of {options.runs} alternating runs\n"
    )
    if "startup" in options.only:
        import startup

        startup.run(list(options.workloads))
    if "storage" in options.only:
        import storage

        storage.run()
    if "export" in options.only:
        import export

        export.run(options.outage_seconds)
    if "lineage" in options.only:
        import lineage

        lineage.run(options.runs)
    if "engine" in options.only:
        import engine

        engine.run(options.runs, list(options.workloads))
    if "throughput" in options.only:
        import throughput

        throughput.run(options.runs, list(options.workloads))
    if "latency" in options.only:
        import latency

        latency.run(list(options.workloads))
    if "scaling" in options.only:
        import scaling

        scaling.run(options.runs, list(options.workloads), options.plot)


if __name__ == "__main__":
    main()
