"""The prefix cache on the real model: a chat's first tokens with it and without it, and its cost.

Each run is a new conversation of three turns, on a server with the cache and on one without, one
after the other. The cost of keeping is measured in this process, where nothing else is in the way.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from processes import server
from workloads import DEVICE, WORKLOADS, find_directory, list_names

from whence import Client
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.loading import load
from whence_server.engines.transformers.runner import Runner

NUM_ANSWER_TOKENS = 120
KEPT_TOKENS = 512
MIN_COST_RUNS = 3
"""Runs of the cost at least: the first one takes new memory from the system."""
SYSTEM = """You are the assistant of a library, on shift {number}. Answer in full sentences, in a
friendly tone, and in at most five of them. If a reader asks for a book, name the author and
the year in which it was first printed, and say in one sentence what it is about. If you do
not know a book, say so, and suggest to ask at the desk on the ground floor, which is open
from nine in the morning to six in the evening, on Saturdays to noon. Books are lent for
four weeks, and can be kept for another four weeks if nobody else has asked for them.
Newspapers, maps and everything printed before 1850 can be read in the reading room only."""
QUESTIONS = (
    """Good morning! I would like to read something from the nineteenth century about the sea,
about sailors and lonely islands. Which book would you give me?""",
    """Thank you. My daughter is nine and loves animals, most of all foxes and bears. Is there
something that we could read together in the evening?""",
    """I will take both. One more thing: can I take a newspaper of the year 1950 home, for my
neighbour, who cannot walk well?""",
)


class Turn(NamedTuple):
    """One turn of a conversation."""

    first_s: float
    num_prompt_tokens: int
    num_cached: int
    steps: list[tuple[int, float]]
    """Id and log probability of each token of the answer."""


def converse(client: Client, number: int) -> list[Turn]:
    """Return the turns of the conversation with this number."""
    messages = [{"role": "system", "content": SYSTEM.format(number=number)}]
    turns = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        started = time.perf_counter()
        first_s = 0.0
        steps = []
        with client.generate(
            messages=messages, greedy=True, max_new_tokens=NUM_ANSWER_TOKENS
        ) as generation:
            for token in generation:
                first_s = first_s or time.perf_counter() - started
                steps.append((token.token_id, token.logprob))
        finished = generation.finished
        assert finished is not None
        turns.append(
            Turn(first_s, finished.num_prompt_tokens, finished.num_cached_prompt_tokens, steps)
        )
        messages.append({"role": "assistant", "content": generation.text})
    return turns


def compare(directory: Path, dtype: str, runs: int) -> None:
    """Print the first tokens of each turn with the cache and without it."""
    flags = ("--dtype", dtype)
    with (
        server(directory, *flags, "--prefix-cache-tokens", "16384") as (_, kept),
        server(directory, *flags) as (_, anew),
        Client(kept) as on,
        Client(anew) as off,
    ):
        for client in (on, off):
            list(client.generate(SYSTEM, max_new_tokens=2))
        pairs = [(converse(on, number), converse(off, number)) for number in range(1, runs + 1)]
    for index in range(len(QUESTIONS)):
        turns = [(with_cache[index], without[index]) for with_cache, without in pairs]
        tokens = [turn.num_prompt_tokens for turn, _ in turns]
        cached = [turn.num_cached for turn, _ in turns]
        print(
            f"| {dtype} | {index + 1} | {median(tokens):.0f} | {median(cached):.0f} | "
            f"{median(turn.first_s for turn, _ in turns) * 1e3:,.0f} | "
            f"{median(turn.first_s for _, turn in turns) * 1e3:,.0f} | "
            f"{median(off.first_s / on.first_s for on, off in turns):.1f} | "
            f"{max(find_difference(on, off) for on, off in turns):.1e} |",
            flush=True,
        )


def find_difference(one: Turn, other: Turn) -> float:
    """Return the largest difference of log probabilities in nats, while the tokens are equal."""
    largest = 0.0
    for (token_id, logprob), (other_id, other_logprob) in zip(one.steps, other.steps, strict=False):
        if token_id != other_id:
            break
        largest = max(largest, abs(logprob - other_logprob))
    return largest


def measure_cost(directory: Path, runs: int) -> None:
    """Print the time of keeping and of reusing a prompt beside that of reading it."""
    loaded = load(
        EngineOptions(
            model=str(directory),
            model_name="R",
            dtype="float32",
            device=DEVICE,
            num_threads=0,
            max_batch_size=1,
            max_cache_tokens=4_096,
            prefill_chunk_tokens=512,
            trust_remote_code=False,
            log_level="warning",
            digest_cache="",
            prefix_cache_tokens=16_384,
        )
    )
    runner = loaded.make_runner()
    assert isinstance(runner, Runner)
    choose = random.Random(0)
    rows = []
    for _ in range(max(runs, MIN_COST_RUNS)):
        token_ids = [choose.randrange(1, loaded.info.vocabulary_size) for _ in range(KEPT_TOKENS)]
        prompt = runner.start(token_ids)
        read = clock(lambda p=prompt: runner.prefill(p, KEPT_TOKENS, all_logits=False))
        kept = clock(lambda p=prompt: runner.keep_prefix(p, ""))
        again = clock(lambda p=prompt: runner.keep_prefix(p, ""))
        later = runner.start([*token_ids, 1])
        reused = clock(lambda p=later: runner.reuse_prefix(p, ""))
        assert later.num_cached == KEPT_TOKENS
        rows.append((read, kept, again, reused))
    read, kept, again, reused = (min(column) * 1e3 for column in zip(*rows, strict=True))
    print(
        f"\n{KEPT_TOKENS} tokens, float32, the least of {len(rows)} runs: read in "
        f"{read:,.0f} ms, kept "
        f"in {kept:.1f} ms ({kept / read:.2%}), kept already {again:.2f} ms, reused in "
        f"{reused:.1f} ms"
    )


def clock(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if DEVICE.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def run(runs: int) -> None:
    """Print the table and the cost."""
    workloads = [WORKLOADS[name] for name in list_names(["R"])]
    if not workloads:
        return
    print(
        "| | turn | prompt tokens | cached | first token, ms | without | times sooner | largest "
        "difference of logprobs |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for workload in workloads:
        compare(find_directory(workload), workload.dtype, runs)
    measure_cost(find_directory(workloads[0]), runs)
