"""Cost of a constraint in a step of the real model, with full trace."""

import json
import time
from statistics import median

import torch
from workloads import DEVICE

from whence_server.demo.real_model import ensure_real_model
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.engine import Admit
from whence_server.engines.transformers.compiled_constraints import (
    CompiledConstraints,
    load_compiler,
)
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.engines.transformers.loop import EngineLoop
from whence_server.engines.transformers.scheduler import Scheduler

NUM_STEPS = 96
SCHEMA = {
    "type": "array",
    "minItems": 24,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 24},
            "country": {"enum": ["France", "Japan", "Chile", "Kenya"]},
            "population": {"type": "integer", "minimum": 0},
            "capital": {"type": "boolean"},
        },
        "required": ["name", "country", "population", "capital"],
        "additionalProperties": False,
    },
}
CONSTRAINT = Constraint(Language.JSON_SCHEMA, json.dumps(SCHEMA))


class Stepping:
    """Engine loop whose steps are timed one by one."""

    def __init__(
        self, loaded: LoadedModel, num_streams: int, constraint: Constraint | None
    ) -> None:
        info = loaded.info
        self.loop = EngineLoop(
            loaded.make_runner(),
            Chooser(info.vocabulary_size, loaded.model.device),
            Scheduler(64, 131_072, 512),
            info.max_context_length,
            lambda turn: None,
        )
        compiled = CompiledConstraints(lambda: load_compiler(info))
        for i in range(num_streams):
            decoding = Decoding(
                Strategy.SAMPLE,
                NUM_STEPS + 8,
                temperature=0.8,
                top_p=0.95,
                eos_token_ids=info.defaults.eos_token_ids,
                # The free streams go on as the constrained ones do.
                ignore_eos=constraint is None,
                seed=i,
                constraint=constraint,
            )
            admit = Admit(str(i), list(range(100, 132)), decoding, TraceOptions())
            self.loop.handle(admit if constraint is None else compiled.compile(admit))
        self.loop.run_turn()

    def step(self) -> float:
        """Run a step; return its seconds."""
        started = time.perf_counter()
        self.loop.run_turn()
        return time.perf_counter() - started


def run(runs: int) -> None:
    """Print the time of a step with and without a schema, in turns of single steps."""
    print("A JSON Schema on SmolLM2-135M: one step, full trace, without and with it in turns\n")
    print("| dtype | streams | free ms | with schema ms | ratio of medians | median of ratios |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for dtype in ("float32", "bfloat16"):
        loaded = load_real_model(dtype)
        for num_streams in (1, 8):
            free, held, ratios = [], [], []
            for _ in range(runs):
                loops = [Stepping(loaded, num_streams, one) for one in (None, CONSTRAINT)]
                for number in range(NUM_STEPS):
                    order = loops if number % 2 else loops[::-1]
                    spent = {id(loop): loop.step() for loop in order}
                    free.append(spent[id(loops[0])])
                    held.append(spent[id(loops[1])])
                    ratios.append(held[-1] / free[-1])
            print(
                f"| {dtype} | {num_streams} | {1e3 * median(free):.1f} | {1e3 * median(held):.1f} "
                f"| {median(held) / median(free):.3f} | {median(ratios):.3f} |"
            )
    print()


def load_real_model(dtype: str) -> LoadedModel:
    """Return the real model as the engine loads it."""
    options = EngineOptions(
        model=str(ensure_real_model()),
        model_name="real",
        dtype=dtype,
        device=DEVICE,
        num_threads=torch.get_num_threads(),
        max_batch_size=64,
        max_cache_tokens=131_072,
        prefill_chunk_tokens=512,
        trust_remote_code=False,
        log_level="warning",
        digest_cache="",
    )
    return load(options)
