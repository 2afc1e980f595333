"""A training that dies by SIGKILL at some point, or waits there for a line.

    python stopping_training.py POINT STEP (die | wait) EXPRESSION

EXPRESSION is a call of `main` or `train`. `run_and_kill` does the same in a process that is forked
from one that has imported everything: importing takes longer than these trainings.
"""

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerContext
from typing import Any

from transformers import Trainer

from whence_server.cli import main
from whence_server.lineage.writer import RecordWriter
from whence_server.training import Recorder
from whence_server.training.recording.run import RecordedRun
from whence_server.training.train import train as module
from whence_server.training.train.train import train

POINTS: dict[str, tuple[Any, str]] = {
    "after step": (RecordedRun, "record_step"),
    "before optimizer saved": (Trainer, "_save_optimizer_and_scheduler"),
    "before begin": (RecordWriter, "begin"),
    "after begin": (RecordWriter, "begin"),
    "after save_model": (module, "save_model"),
    "after saved_model": (Recorder, "record_saved_model"),
}
"""The method before or after which a training stops."""


def run_and_kill(point: str, step: int, **settings: object) -> int | None:
    """Train in another process until a point, where it dies; return its exit code."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train_until, args=(point, step, settings))
    process.start()
    process.join(120)
    return process.exitcode


def _train_until(point: str, step: int, settings: dict[str, object]) -> None:
    _stop_at(point, step, "die")
    train(settings)


def _stop_at(point: str, step: int, action: str) -> None:
    """Replace a point's method by one that stops there."""
    owner, method = POINTS[point]
    original = getattr(owner, method)

    def stop() -> None:
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        print("waits", flush=True)
        sys.stdin.readline()

    def get_step(*arguments: Any) -> int:
        if method == "record_step":
            return int(arguments[1])
        if method == "_save_optimizer_and_scheduler":
            return int(arguments[0].state.global_step)
        return step

    def stopping(*args: Any, **kwargs: Any) -> None:
        is_here = get_step(*args) == step
        if point.startswith("before") and is_here:
            stop()
        original(*args, **kwargs)
        if point.startswith("after") and is_here:
            stop()

    setattr(owner, method, stopping)


if __name__ == "__main__":
    _stop_at(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    ended = eval(sys.argv[4], {"main": main, "train": train})
    sys.exit(ended if sys.argv[4].startswith("main") else not ended)
