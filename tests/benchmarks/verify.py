"""False rejects and false accepts of verification by replay, and its cost.

python tests/benchmarks/verify.py --state FILE [--minutes 30] [--trials 1000] [--models tiny real]
python tests/benchmarks/verify.py --state FILE --report

Trials are made in slices of one batch. Each result is a line of the state file, so that a run can
be stopped and goes on later: the seed of a trial is its number. A slice that was stopped leaves no
line. The number of trials is that of each kind: of each manipulation, and of each strategy.
"""

import argparse
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from engine_harness import engine_options
from replaying import (
    claim,
    generate,
    judge,
    make_question,
    make_verifier,
    save_rounded,
    save_tuned,
    strip_numbers,
    swap_token,
)
from tiny_models import save_tiny_model

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.noise import Noise
from whence_server.demo.real_model import ensure_real_model
from whence_server.domain.decoding import Decoding, EarlyStopping, Strategy
from whence_server.engines.transformers.loading import LoadedModel, load

NUM_TOKENS = 128
TINY = (
    "gpt2",
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "opt",
    "bloom",
    "mixtral",
    "mamba2",
    "jamba",
)
SAMPLE = Decoding(Strategy.SAMPLE, NUM_TOKENS, temperature=0.8, top_p=0.95)
STRATEGIES: dict[str, Decoding] = {
    "sample": SAMPLE,
    "greedy": Decoding(Strategy.GREEDY, NUM_TOKENS),
    "top-k": Decoding(Strategy.SAMPLE, NUM_TOKENS, top_k=50),
    "min-p and penalty": Decoding(
        Strategy.SAMPLE, NUM_TOKENS, min_p=0.05, repetition_penalty=1.1, temperature=1.2
    ),
    "typical": Decoding(Strategy.SAMPLE, NUM_TOKENS, typical_p=0.9),
    "four samples": Decoding(Strategy.SAMPLE, NUM_TOKENS, top_p=0.9, num_return_sequences=4),
    "beams": Decoding(
        Strategy.BEAM_SEARCH,
        NUM_TOKENS,
        num_beams=4,
        num_return_sequences=2,
        early_stopping=EarlyStopping.HEURISTIC,
    ),
    "forced": Decoding(Strategy.FORCED, NUM_TOKENS),
}
SHAPES = ((1, 16, 1), (1, 512, 2), (8, 16, 2), (8, 512, 1), (32, 512, 2), (32, 16, 1))
"""(generations together, chunk of the prompt, threads)."""
MOST_SLICES = 10_000
WEIGHTS = ("bfloat16", "int8", "4 bits", "fine-tuned")
CLAIMS: dict[str, Callable[[Decoding], Decoding]] = {
    "another seed": lambda made: claim(made, seed=made.seed + 1),
    "temperature 0.9": lambda made: claim(made, temperature=0.9),
    "top-p 0.9": lambda made: claim(made, top_p=0.9),
}


@dataclass
class Bench:
    """One model in one data type, and the trials with it."""

    name: str
    directory: Path
    dtype: str
    scratch: Path
    noise: Noise | None = None
    loaded: LoadedModel | None = None
    verifier: Any = None

    def open(self) -> None:
        """Load the model, and measure its noise."""
        if self.loaded is None:
            self.loaded = self._load(self.directory)
            self.verifier, self.noise = make_verifier(self.loaded, self.noise)

    def _load(self, directory: Path) -> LoadedModel:
        findings = self.scratch / f"findings-{self.name}.json"
        options = engine_options(directory, dtype=self.dtype, findings_cache=str(findings))
        return load(options._replace(num_threads=2 if self.name == "real" else 1))

    def make_prompt(self, seed: int) -> list[int]:
        """Return a prompt of 4 to 60 tokens."""
        assert self.loaded is not None
        choose = random.Random(seed)
        size = min(self.loaded.info.vocabulary_size, 400 if self.name != "real" else 40_000)
        return [choose.randrange(1, size) for _ in range(choose.randrange(4, 60))]

    def make_decoding(self, strategy: str, seed: int) -> Decoding:
        """Return the settings of a trial."""
        assert self.loaded is not None
        ends = self.loaded.info.defaults.eos_token_ids
        made = claim(STRATEGIES[strategy], ignore_eos=True, eos_token_ids=ends)
        if made.strategy is Strategy.SAMPLE:
            made = claim(made, seed=seed * 7919 + 1)
        if made.strategy is Strategy.FORCED:
            made = claim(made, forced_token_ids=tuple(self.make_prompt(seed + 1) * 32)[:NUM_TOKENS])
        return made

    def save_changed(self, how: str) -> Path:
        """Save the manipulated weights, once."""
        target = self.scratch / f"{self.name}-{self.dtype}-{how.replace(' ', '')}"
        if not (target / "config.json").exists():
            if how == "fine-tuned":
                texts = [self.make_prompt(seed) * 3 for seed in range(10)]
                save_tuned(self.directory, target, [text[:96] for text in texts])
            else:
                save_rounded(self.directory, target, how)
        return target

    def run_honest(self, number: int) -> Iterator[dict[str, Any]]:
        """Run one batch of honest generations."""
        assert self.loaded is not None
        # Each strategy comes in each shape.
        num_rows, chunk, num_threads = SHAPES[number // len(STRATEGIES) % len(SHAPES)]
        torch.set_num_threads(num_threads)
        names = list(STRATEGIES)
        made = [names[(number + i) % len(names)] for i in range(num_rows)]
        requests = [
            (self.make_prompt(number * 64 + i), self.make_decoding(each, number * 64 + i))
            for i, each in enumerate(made)
        ]
        finished = generate(self.loaded, requests, chunk=chunk)
        torch.set_num_threads(2 if self.name == "real" else 1)
        for strategy, (prompt, decoding), (steps, rounds) in zip(
            made, requests, finished, strict=True
        ):
            yield self._judge(f"honest: {strategy}", prompt, decoding, steps, rounds)

    def run_weights(self, how: str, number: int) -> Iterator[dict[str, Any]]:
        """Run one batch with manipulated weights."""
        changed = self._load(self.save_changed(how))
        requests = [
            (self.make_prompt(number * 64 + i), self.make_decoding("sample", number * 64 + i))
            for i in range(16)
        ]
        finished = generate(changed, requests)
        del changed
        for (prompt, decoding), (steps, rounds) in zip(requests, finished, strict=True):
            yield from self._judge_both(f"weights: {how}", prompt, decoding, steps, rounds)

    def run_claims(self, number: int) -> Iterator[dict[str, Any]]:
        """Run one batch, and claim other settings, another prompt and another token."""
        assert self.loaded is not None
        requests = [
            (self.make_prompt(number * 64 + i), self.make_decoding("sample", number * 64 + i))
            for i in range(16)
        ]
        hidden = self.make_prompt(number + 77)[:8]
        finished = generate(self.loaded, requests)
        with_hidden = generate(self.loaded, [(hidden + prompt, made) for prompt, made in requests])
        choose = random.Random(number)
        for (prompt, made), (steps, _), (others, _) in zip(
            requests, finished, with_hidden, strict=True
        ):
            for name, change in CLAIMS.items():
                yield from self._judge_both(f"claim: {name}", prompt, change(made), steps)
            yield from self._judge_both("claim: hidden system prompt", prompt, made, others)
            swapped = swap_token(
                steps, choose.randrange(len(steps)), self.loaded.info.vocabulary_size
            )
            yield from self._judge_both("claim: one token swapped", prompt, made, swapped)

    def _judge_both(
        self, kind: str, prompt: list[int], decoding: Decoding, steps: Any, rounds: Any = ()
    ) -> Iterator[dict[str, Any]]:
        yield self._judge(kind, prompt, decoding, steps, rounds)
        yield self._judge(f"{kind} (tokens alone)", prompt, decoding, strip_numbers(steps), rounds)

    def _judge(
        self, kind: str, prompt: list[int], decoding: Decoding, steps: Any, rounds: Any = ()
    ) -> dict[str, Any]:
        assert self.loaded is not None
        question = make_question(self.loaded.info, prompt, decoding, steps, rounds)
        result, events = judge(self.verifier, question)
        found = [event for event in events if isinstance(event, pb.StepVerification)]
        nats = [
            each.nats
            for event in found
            for each in event.differences
            if each.part in {pb.STEP_PART_TOKEN, pb.STEP_PART_KEPT_SET}
        ]
        first = min(
            (event.index for event in found if event.verdict == pb.STEP_VERDICT_DIVERGENT),
            default=None,
        )
        assert self.noise is not None
        return {
            "model": self.name,
            "dtype": self.dtype,
            "kind": kind,
            "verdict": pb.Verdict.Name(result.verdict).removeprefix("VERDICT_"),
            "within": result.num_within_margin,
            "divergent": result.num_divergent,
            "first": first,
            "nats": min(max(nats, default=0.0), 99.0),
            "largest": min(result.largest_logprob_difference, 99.0),
            "rms": min(result.root_mean_square_difference, 99.0),
            "margin": self.noise.margin,
            "rms_limit": self.noise.root_mean_square_limit,
            "message": result.message[:160] if kind.startswith("honest") else "",
            "seconds": result.elapsed.ToMilliseconds() / 1000,
            "steps": [[e.part, e.message, e.nats] for s in found for e in s.differences][:3]
            if kind.startswith("honest") and result.verdict == pb.VERDICT_DIVERGENT
            else [],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="file that results are added to")
    parser.add_argument("--minutes", type=float, default=30.0, help="time of this slice")
    parser.add_argument("--trials", type=int, default=1_000, help="trials of each kind")
    parser.add_argument("--models", nargs="+", default=["tiny", "real"], choices=["tiny", "real"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--real", type=Path, help="its directory; by default it is made")
    parser.add_argument("--report", action="store_true", help="print the table of the state file")
    arguments = parser.parse_args()
    if not arguments.report:
        run(arguments)
    report(arguments.state)


def run(arguments: argparse.Namespace) -> None:
    """Make trials until there are enough of each kind, or the time is over."""
    end = time.monotonic() + arguments.minutes * 60
    scratch = arguments.state.parent / "verify-scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    benches = list(_list_benches(arguments, scratch))
    lines = read_state(arguments.state)
    made = {(line["model"], line["dtype"], line["slice"], line["number"]) for line in lines}
    done = count_trials(lines)
    number = 0
    while time.monotonic() < end and number < MOST_SLICES:
        is_needed = False
        for bench in benches:
            for name, kinds, slice_of in _list_slices(bench):
                keys = [(bench.name == "real", bench.dtype, kind) for kind in kinds]
                if all(done[key] >= arguments.trials for key in keys):
                    continue
                is_needed = True
                if (bench.name, bench.dtype, name, number) in made:
                    continue
                if time.monotonic() > end:
                    return
                bench.open()
                results = list(slice_of(number))
                with arguments.state.open("a") as file:
                    file.writelines(
                        json.dumps(result | {"slice": name, "number": number}) + "\n"
                        for result in results
                    )
                for result in results:
                    done[bench.name == "real", bench.dtype, result["kind"]] += 1
        if not is_needed:
            return
        number += 1


def _list_benches(arguments: argparse.Namespace, scratch: Path) -> Iterator[Bench]:
    for dtype in arguments.dtypes:
        for name in TINY if "tiny" in arguments.models else ():
            directory = scratch / f"tiny-{name}"
            if not directory.exists():
                save_tiny_model(directory, name)
            yield Bench(name, directory, dtype, scratch)
        if "real" in arguments.models:
            yield Bench("real", arguments.real or ensure_real_model(), dtype, scratch)


def _list_slices(
    bench: Bench,
) -> Iterator[tuple[str, list[str], Callable[[int], Iterator[dict[str, Any]]]]]:
    """Yield each slice with the kinds of its trials."""
    yield "honest", [f"honest: {name}" for name in STRATEGIES], bench.run_honest
    claims = [*CLAIMS, "hidden system prompt", "one token swapped"]
    yield "claims", [f"claim: {name}" for name in claims], bench.run_claims
    for how in WEIGHTS:
        if (bench.dtype, how) != ("bfloat16", "bfloat16"):
            yield how, [f"weights: {how}"], partial(bench.run_weights, how)


def count_trials(lines: list[dict[str, Any]]) -> dict[tuple[bool, str, str], int]:
    """Return the number of trials by (is the real model, data type, kind)."""
    counts: dict[tuple[bool, str, str], int] = defaultdict(int)
    for line in lines:
        counts[line["model"] == "real", line["dtype"], line["kind"]] += 1
    return counts


def read_state(state: Path) -> list[dict[str, Any]]:
    if not state.exists():
        return []
    return [json.loads(line) for line in state.read_text().splitlines() if line.endswith("}")]


def report(state: Path) -> None:
    """Print one row for each kind of trial."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in read_state(state):
        model = "real" if line["model"] == "real" else "tiny"
        groups[model, line["dtype"], line["kind"]].append(line)
    print(
        "| model | dtype | trial | trials | rejected | tokens until found, median and 95% | AUC |"
    )
    print("| --- | --- | --- | ---: | ---: | --- | ---: |")
    for (model, dtype, kind), lines in sorted(groups.items()):
        rejected = [line for line in lines if line["verdict"] == "DIVERGENT"]
        honest = [
            line
            for (other, of_dtype, name), each in groups.items()
            if (other, of_dtype) == (model, dtype) and name == "honest: sample"
            for line in each
        ]
        # Of false claims as recorded, draws and tokens tell, which have no score.
        scored = kind.startswith("weights") or kind.endswith("(tokens alone)")
        auc = f"{compute_auc(honest, lines, kind):.3f}" if scored else ""
        print(
            f"| {model} | {dtype} | {kind} | {len(lines)} | {len(rejected)} | "
            f"{describe_first(lines, kind)} | {auc} |"
        )


def describe_first(lines: list[dict[str, Any]], kind: str) -> str:
    """Return the median and the 95th percentile of the tokens until the first divergent step."""
    if kind.startswith("honest"):
        return ""
    firsts = sorted(math.inf if line["first"] is None else line["first"] + 1 for line in lines)
    shown = [firsts[min(int(len(firsts) * share), len(firsts) - 1)] for share in (0.5, 0.95)]
    return ", ".join("more than 128" if math.isinf(each) else str(each) for each in shown)


def compute_auc(honest: list[dict[str, Any]], false: list[dict[str, Any]], kind: str) -> float:
    """Return the probability that a false trial scores above an honest one; ties count half."""
    field = "nats" if kind.endswith("(tokens alone)") else "rms"
    if not honest or not false:
        return math.nan
    scores = [(line[field] / line["margin"], 0) for line in honest]
    scores += [(line[field] / line["margin"], 1) for line in false]
    above = sum(
        (a[0] > b[0]) + 0.5 * (a[0] == b[0]) for a in scores if a[1] for b in scores if not b[1]
    )
    return above / (len(honest) * len(false))


if __name__ == "__main__":
    main()
