"""Increase of the peak memory of an engine that reads a context and makes a few tokens.

Reads a JSON command a line ({"detail": "INTERNALS", "num_tokens": ...}) and answers each with a
JSON line. The engine's loop is alone in this process. Its runner is new for each command, so that
no memory of the previous one is left. Linux: peaks are VmHWM in proc(5).
"""

import gc
import json
import sys
from pathlib import Path

from engine import options
from workloads import TEMPERATURE, TOP_P, WORKLOADS, Workload, prompt

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.engine import Admit
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.engines.transformers.loop import EngineLoop
from whence_server.engines.transformers.scheduler import Scheduler

NUM_NEW_TOKENS = 4


def measure_increase(
    loaded: LoadedModel, workload: Workload, detail: TraceDetail, num_tokens: int
) -> int:
    """Return the increase of the process's peak memory in bytes."""
    gc.collect()
    reset_peak()
    before = read_peak_bytes()
    loop = EngineLoop(
        loaded.make_runner(),
        Chooser(workload.vocabulary_size, loaded.model.device),
        Scheduler(64, 131_072, 512),
        loaded.info.max_context_length,
        lambda turn: None,
    )
    decoding = Decoding(
        Strategy.SAMPLE, NUM_NEW_TOKENS, temperature=TEMPERATURE, top_p=TOP_P, ignore_eos=True
    )
    ids = prompt(0, workload.vocabulary_size, num_tokens - NUM_NEW_TOKENS)
    loop.handle(Admit("0", ids, decoding, TraceOptions(detail)))
    while not loop.is_idle:
        loop.run_turn()
    return read_peak_bytes() - before


def read_peak_bytes() -> int:
    """Return the peak of the resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Reset the peak to the current resident memory, so that loading does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def main(name: str) -> None:
    workload = WORKLOADS[name]
    loaded = load(options(workload))
    for detail in (TraceDetail.DECISIONS, TraceDetail.INTERNALS):
        measure_increase(loaded, workload, detail, 512)  # warm-up
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        lifted = measure_increase(
            loaded, workload, TraceDetail[command["detail"]], command["num_tokens"]
        )
        print(json.dumps({"bytes": lifted}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
