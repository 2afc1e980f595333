"""The engine's loop on the real model against `generate` with the same sampling, in one process."""

import time
from statistics import median

from engine import measure_ours, measure_theirs, options
from workloads import L, prompt

from whence_server.demo.real_model import ensure_real_model
from whence_server.domain.model import StepKernels
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.loading import LoadedModel, load

WAYS = (
    ("float32", StepKernels.EXACT),
    ("float32", StepKernels.PACKED),
    ("bfloat16", StepKernels.EXACT),
)
"""dtypes and kernels that are measured."""


class Clock:
    """Processor time of this process over some runs; other work on the machine adds little."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def measure(self, run, *arguments: object) -> float:
        began = time.process_time()
        tokens_a_second = run(*arguments)
        self.seconds.append(time.process_time() - began)
        return tokens_a_second


def compare(loaded: LoadedModel, num_streams: int, runs: int) -> str:
    prompts = [prompt(i, loaded.info.vocabulary_size) for i in range(num_streams)]
    measure_ours(loaded, prompts), measure_theirs(loaded, prompts)
    ours, theirs = Clock(), Clock()
    pairs = [
        (
            ours.measure(measure_ours, loaded, prompts),
            theirs.measure(measure_theirs, loaded, prompts),
        )
        for _ in range(runs)
    ]
    return (
        f"{median(a for a, _ in pairs):.1f} / {median(b for _, b in pairs):.1f} tokens/s "
        f"({median(a / b for a, b in pairs):.2f}); processor time "
        f"{median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)):.2f}"
    )


def run(runs: int) -> None:
    """Print the ratios for one sequence and eight."""
    for dtype, kernels in WAYS:
        wanted = options(L)._replace(
            model=str(ensure_real_model()), dtype=dtype, step_kernels=kernels
        )
        loaded = load(wanted)
        # The peer has transformers' own attention; our steps are captured with ours.
        attention.restore(loaded.model)
        for num_streams in (1, 8):
            print(
                f"real model, {dtype}, {kernels} kernels, {num_streams} sequences, the engine's "
                "loop / `generate`: "
                f"{compare(loaded, num_streams, runs)}",
                flush=True,
            )
