"""How far one context lifts the peak memory of an engine that reads it and makes a few tokens.

Reads a JSON command a line ({"detail": "INTERNALS", "num_tokens": ...}) and answers each with a
JSON line. The engine's loop is alone in this process. Its runner is new for each command, so that
nothing is left of the one before. Linux: peaks are VmHWM in proc(5).
"""

import gc
import json
import sys
from pathlib import Path

from engine import options
from workloads import TEMPERATURE, TOP_P, WORKLOADS, Workload, prompt

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.engine import Admit
from whence_server.engine.decoding import Chooser
from whence_server.engine.loading import LoadedModel, load
from whence_server.engine.loop import EngineLoop
from whence_server.engine.scheduler import Scheduler

NUM_NEW_TOKENS = 4


def lifted_bytes(
    loaded: LoadedModel, workload: Workload, detail: TraceDetail, num_tokens: int
) -> int:
    """By how much the process's peak is above what it had before."""
    gc.collect()
    forget_peak()
    before = peak_bytes()
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
    return peak_bytes() - before


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Makes what is resident now the peak: what loading took does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def main(name: str) -> None:
    workload = WORKLOADS[name]
    loaded = load(options(workload))
    for detail in (TraceDetail.DECISIONS, TraceDetail.INTERNALS):
        lifted_bytes(loaded, workload, detail, 512)  # whatever is made once, is made
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        lifted = lifted_bytes(
            loaded, workload, TraceDetail[command["detail"]], command["num_tokens"]
        )
        print(json.dumps({"bytes": lifted}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
