"""The engine's loop alone against `generate` in one process: the upper bound of serving."""

import os
import time
from statistics import median

import torch
from workloads import (
    DEVICE,
    NUM_NEW_TOKENS,
    TEMPERATURE,
    TOP_P,
    WORKLOADS,
    Workload,
    find_directory,
    prompt,
)

from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.engine import Admit
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.engines.transformers.loop import EngineLoop
from whence_server.engines.transformers.scheduler import Scheduler


def options(workload: Workload) -> EngineOptions:
    return EngineOptions(
        model=str(find_directory(workload)),
        model_name=workload.name,
        dtype=workload.dtype,
        device=DEVICE,
        num_threads=0,
        max_batch_size=64,
        max_cache_tokens=131_072,
        prefill_chunk_tokens=512,
        trust_remote_code=False,
        log_level="warning",
        digest_cache="",
    )


def measure_ours(loaded: LoadedModel, prompts: list[list[int]]) -> float:
    """Return the tokens per second of the loop with full trace, whose turns are discarded."""
    loop = EngineLoop(
        loaded.make_runner(),
        Chooser(loaded.info.vocabulary_size, loaded.model.device),
        Scheduler(64, 131_072, 512),
        loaded.info.max_context_length,
        lambda turn: None,
    )
    for i, ids in enumerate(prompts):
        decoding = Decoding(
            Strategy.SAMPLE,
            NUM_NEW_TOKENS,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            ignore_eos=True,
            seed=i,
        )
        loop.handle(Admit(str(i), ids, decoding, TraceOptions()))
    started = time.perf_counter()
    while not loop.is_idle:
        loop.run_turn()
    return len(prompts) * NUM_NEW_TOKENS / (time.perf_counter() - started)


def measure_theirs(loaded: LoadedModel, prompts: list[list[int]]) -> float:
    """Return the tokens per second of `generate`, with the same threads."""
    started = time.perf_counter()
    loaded.model.generate(
        torch.tensor(prompts, device=DEVICE),
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=NUM_NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )
    return len(prompts) * NUM_NEW_TOKENS / (time.perf_counter() - started)


def run(runs: int, names: list[str]) -> None:
    for name in names:
        workload = WORKLOADS[name]
        # A small model before this one left a single thread.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        loaded = load(options(workload))
        # The peer has transformers' own attention; our steps are recorded with ours.
        attention.restore(loaded.model)
        for num_streams in (1, 16):
            prompts = [prompt(i, workload.vocabulary_size) for i in range(num_streams)]
            measure_ours(loaded, prompts), measure_theirs(loaded, prompts)
            pairs = [
                (measure_ours(loaded, prompts), measure_theirs(loaded, prompts))
                for _ in range(runs)
            ]
            print(
                f"{workload}, {torch.get_num_threads()} threads, {num_streams} sequences: the "
                f"engine's loop makes {median(a / b for a, b in pairs):.2f} times the tokens of "
                "`generate`",
                flush=True,
            )
