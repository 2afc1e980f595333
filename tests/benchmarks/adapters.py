"""A step's forward pass over eight sequences with adapters, against eight without, and PEFT's.

All ways take a step in turns, so that whatever else the machine does falls on all of them.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
from engine import options
from transformers import AutoModelForCausalLM, DynamicCache
from workloads import BUILD, DEVICE, NUM_PROMPT_TOKENS, WORKLOADS, Workload, find_directory, prompt

from whence_server.engines.transformers.adapted_runner import AdaptedRunner
from whence_server.engines.transformers.loading import LoadedModel, load

NAMES = ("a", "b", "c", "d")
RANK = 8
STEPS_A_RUN = 8
WARM_UP_STEPS = 2

Step = Callable[[], object]


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads, a row as soon as it is known."""
    print("| 8 sequences, LoRA of rank 8 on all linear layers | forward pass | / without adapter |")
    print("| --- | ---: | ---: |", flush=True)
    for name in names:
        _measure(WORKLOADS[name], runs)


def _measure(workload: Workload, runs: int) -> None:
    base = find_directory(workload)
    places = {name: _save(base, workload, number) for number, name in enumerate(NAMES)}
    given = tuple((name, str(place)) for name, place in places.items())
    loaded = load(options(workload)._replace(adapters=given))
    peers = _load_peft(base, places, workload.dtype)
    steps: dict[str, Step] = {
        "without adapter": _decode(loaded, workload, [""] * 8),
        "one adapter": _decode(loaded, workload, ["a"] * 8),
        "4 without, 4 of one adapter": _decode(loaded, workload, ["", "a"] * 4),
        "2 of each of 4 adapters": _decode(loaded, workload, list(NAMES) * 2),
        "2 of each of 4 adapters, a pass for each": _decode(
            loaded, workload, list(NAMES) * 2, grouped=True
        ),
        "PEFT: one adapter": _decode_by_peft(peers, workload, ["a"] * 8),
        "PEFT: 2 of each of 4 adapters": _decode_by_peft(peers, workload, list(NAMES) * 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(WARM_UP_STEPS + runs * STEPS_A_RUN):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    alone = median(seconds["without adapter"][WARM_UP_STEPS:])
    for name, taken in seconds.items():
        typical = median(taken[WARM_UP_STEPS:])
        print(
            f"| {workload}: {name} | {typical * 1e3:.1f} ms | {typical / alone:.2f} |", flush=True
        )


def _save(base: Path, workload: Workload, seed: int) -> Path:
    """Return the directory of an adapter, which is made once."""
    directory = BUILD / f"adapter-{workload.name}-{seed}"
    if not (directory / "adapter_model.safetensors").exists():
        torch.manual_seed(seed)
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.02)
            model.save_pretrained(directory)
    return directory


def _decode(
    loaded: LoadedModel, workload: Workload, adapters: list[str], *, grouped: bool = False
) -> Step:
    """Return a step of the engine's runner over sequences with these adapters."""
    runner: Any = loaded.make_runner()
    if grouped:
        apart = loaded._replace(mixed=None).make_runner()
        runner = apart if isinstance(apart, AdaptedRunner) else runner
    for index, adapter in enumerate(adapters):
        ids = prompt(index, workload.vocabulary_size)
        started = runner.start(ids, adapter=adapter)
        runner.prefill(started, len(ids), all_logits=False)
        runner.join(started)

    def step() -> None:
        runner.decode([5] * len(adapters))
        runner.synchronize()

    return step


def _load_peft(base: Path, places: dict[str, Path], dtype: str) -> Any:
    with warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(DEVICE)
        peers: Any = peft.PeftModel.from_pretrained(model, places["a"], adapter_name="a")
        for name in NAMES[1:]:
            peers.load_adapter(places[name], adapter_name=name)
    return peers.eval()


def _decode_by_peft(peers: Any, workload: Workload, adapters: list[str]) -> Step:
    """Return a step of PEFT's forward pass, which splits the batch by adapter in each layer."""
    cache = DynamicCache()
    chosen = {} if len(set(adapters)) == 1 else {"adapter_names": adapters}
    ids = [prompt(index, workload.vocabulary_size) for index in range(len(adapters))]
    newest = torch.full((len(adapters), 1), 5, device=DEVICE)

    @torch.inference_mode()
    def read(input_ids: torch.Tensor) -> None:
        peers(input_ids=input_ids, past_key_values=cache, use_cache=True, **chosen)
        if DEVICE != "cpu":
            torch.cuda.synchronize()

    read(torch.tensor(ids, device=DEVICE))
    assert cache.get_seq_length() == NUM_PROMPT_TOKENS
    return lambda: read(newest)
