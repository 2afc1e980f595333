"""`make bench-sources`: how faithful direct sources are, against rankings that cost nothing.

Of the real model: see `real_sources`. Of a small model that was taught to find planted facts, and
of the demo's model that was trained on record:

- recall: how much of the fact that is asked for (key and values, all six times that it is said) is
  among the tenth of the context that a ranking puts first;
- share: how much of the ranking's whole weight falls on the fact, where it is a weight;
- deletion: positions are hidden from all layers, best first, and what is left of the answer's
  probability is averaged over the share that is hidden, from 0 to a half. Lower is better.

Rankings: direct sources with heads as `whence-server weigh-heads` weighs them, and with all alike,
mean attention over all layers and heads, the newest first, at random. Steps count where the model
answers right (facts), or where the context makes the token at least `MIN_NATS` likelier than its
last position alone does (demo). Below each table stand the differences to the first, step by step,
with the interval that 95 of 100 resamplings of the steps fall into (Efron, "Bootstrap Methods",
1979), and how much like the sources they are when all weights are shuffled (Adebayo et al., "Sanity
Checks for Saliency Maps", 2018).
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import real_sources
import torch
from needle import haystack, train_model
from resampling import format_interval
from transformers import AutoModelForCausalLM, AutoTokenizer
from watched import NOTHING, Case, Watched
from workloads import R16, R32

from whence_server.demo.corpus import load_documents
from whence_server.demo.model import ensure_demo_model
from whence_server.engines.transformers.internals import attention

LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Fractions of the context that are hidden."""
SHOWN = slice(2, 6)
TOP = 0.1
NEEDLE_TOKENS = 480
NUM_NEEDLE_STEPS = 120
DEMO_TOKENS = 192
NUM_DEMO_STEPS = 300
MIN_NATS = 2.0
MAX_TRIES_A_STEP = 50
"""Most contexts to try for each step that counts."""
NUM_OTHER_WEIGHTS = 20
"""Steps that are repeated with shuffled weights."""
WEIGHED, ALIKE = "direct sources, heads weighed", "direct sources, heads alike"
MEAN, NEWEST, RANDOM = "mean attention", "newest first", "random"
NUM_WEIGHED = 64
"""Contexts from which the weights of heads are computed."""


class Measured(NamedTuple):
    """Results of a ranking at one step.

    Attributes:
        left: fraction of the answer's probability that is left at each of `LEVELS`.
        recall: recall of the fact; None if there is none.
        share: fraction of the ranking's weight on the fact; None if it has no weights.
    """

    left: torch.Tensor
    recall: float | None
    share: float | None

    @property
    def area(self) -> float:
        """Mean of `left` over the hidden fraction."""
        return float(torch.trapezoid(self.left, torch.tensor(LEVELS))) / LEVELS[-1]


def facts(watched: Watched, num_cases: int) -> Iterator[Case]:
    """Yield steps that answer a question which the model can answer."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_cases * MAX_TRIES_A_STEP):
        row = haystack(NEEDLE_TOKENS, generator)
        # One question each: a later one could be read off an earlier one's answer.
        for place in row.answers[0]:
            case = Case(row.token_ids[:place], row.token_ids[place], row.needles[0])
            if float(watched.logprobs(case, [NOTHING])) > -0.7:  # more likely than not
                yield case
    raise RuntimeError("the model was taught to find facts and finds next to none")


def prose(watched: Watched, tokenizer: Any, num_cases: int) -> Iterator[Case]:
    """Yield steps of the Python reference that depend on their context."""
    generator = torch.Generator().manual_seed(11)
    texts = [tokenizer(text, truncation=False).input_ids for text in load_documents().values()]
    texts = [ids for ids in texts if len(ids) > DEMO_TOKENS]
    for _ in range(num_cases * MAX_TRIES_A_STEP):
        ids = texts[int(torch.randint(len(texts), (1,), generator=generator))]
        begin = int(torch.randint(len(ids) - DEMO_TOKENS, (1,), generator=generator))
        context = ids[begin : begin + DEMO_TOKENS]
        with torch.inference_mode():
            answer = int(watched.model(input_ids=torch.tensor([context])).logits[0, -1].argmax())
        case = Case(context, answer, [])
        whole, alone = watched.logprobs(case, [NOTHING, torch.arange(DEMO_TOKENS - 1)])
        if float(whole - alone) >= MIN_NATS:
            yield case
    raise RuntimeError("next to no step of the demo's model depends on its context")


def rankings(
    watched: Watched, case: Case, generator: torch.Generator
) -> dict[str, tuple[torch.Tensor, bool]]:
    """Return the scores of all positions but the newest, and whether they are weights."""
    weighed, alike, mean = watched.shares(case.token_ids)
    return {
        WEIGHED: (weighed, True),
        ALIKE: (alike, True),
        MEAN: (mean, True),
        NEWEST: (torch.arange(len(mean)).float(), False),
        RANDOM: (torch.rand(len(mean), generator=generator), False),
    }


def measure_ranking(
    watched: Watched, case: Case, scores: torch.Tensor, *, is_weight: bool
) -> Measured:
    """Return the results of a ranking at a step."""
    order = scores.argsort(descending=True)
    logprobs = watched.logprobs(case, [order[: round(level * len(order))] for level in LEVELS])
    left = (logprobs - logprobs[0]).exp()
    if not case.needle:
        return Measured(left, None, None)
    first = set(order[: round(TOP * len(order))].tolist())
    return Measured(
        left,
        len(first & set(case.needle)) / len(case.needle),
        float(scores[case.needle].sum()) if is_weight else None,
    )


def show(what: str, watched: Watched, cases: list[Case]) -> None:
    """Print the table of these steps, and what stands below it."""
    generator = torch.Generator().manual_seed(2)
    results: dict[str, list[Measured]] = {}
    for case in cases:
        for name, (scores, is_weight) in rankings(watched, case, generator).items():
            found = measure_ranking(watched, case, scores, is_weight=is_weight)
            results.setdefault(name, []).append(found)
    levels = " | ".join(f"{level:.0%} hidden" for level in LEVELS[SHOWN])
    print(f"\n{what}; {len(cases)} steps:\n")
    print(f"| ranking | recall in the top {TOP:.0%} | share | area under deletion | {levels} |")
    print("| --- |" + " ---: |" * 7)
    for name, found in results.items():
        curve = torch.stack([one.left for one in found]).mean(0)[SHOWN]
        points = " | ".join(f"{float(point):.2f}" for point in curve)
        recall = _mean([one.recall for one in found], "{:.2f}")
        share = _mean([one.share for one in found], "{:.2f}")
        area = _mean([one.area for one in found], "{:.3f}")
        print(f"| {name} | {recall} | {share} | {area} | {points} |", flush=True)
    for direct, others in ((WEIGHED, (ALIKE, MEAN, NEWEST, RANDOM)), (ALIKE, (MEAN,))):
        print(f"\nmore than {direct}, step by step (95% of resamplings):\n")
        for name in others:
            print(f"- {name}: {_differences(results[name], results[direct])}")
    print(f"\n{_compare_shuffled(watched, cases[:NUM_OTHER_WEIGHTS])}", flush=True)


def _differences(ones: list[Measured], others: list[Measured]) -> str:
    pairs = list(zip(ones, others, strict=True))
    differences = {
        "recall": [_less(one.recall, other.recall) for one, other in pairs],
        "share": [_less(one.share, other.share) for one, other in pairs],
        "area": [_less(one.area, other.area) for one, other in pairs],
    }
    return ", ".join(
        f"{of} {format_interval([one for one in those if one is not None])}"
        for of, those in differences.items()
        if None not in those
    )


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: list[float | None], form: str) -> str:
    there = [value for value in values if value is not None]
    return form.format(sum(there) / len(there)) if there else ""


def _compare_shuffled(watched: Watched, cases: list[Case]) -> str:
    """Return the correlation with the sources of the same model with shuffled weights."""
    model = copy.deepcopy(watched.model)
    attention.restore(model)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel())
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    other = Watched(model, [case.token_ids for case in cases])
    correlations = []
    for case in cases:
        ranks = [
            looked_at.shares(case.token_ids)[0].argsort().argsort().double()
            for looked_at in (watched, other)
        ]
        correlations.append(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    correlation = sum(correlations) / len(correlations)
    return (
        "rank correlation (Spearman's) with the sources when every tensor's weights are shuffled: "
        f"{correlation:.2f}"
    )


def take_first(cases: Iterator[Case], num_cases: int) -> list[Case]:
    """Return the first `num_cases` cases."""
    return [case for case, _ in zip(cases, range(num_cases), strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how faithful direct sources are.")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="of the model that is taught")
    parser.add_argument(
        "--prompts", type=int, default=300, help="prompts of the real model; 60 for a short run"
    )
    parser.add_argument("--head-weights", default="", help="file fitted for the real model")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--leave-out", action="store_true", help="rank by leaving sentences out too"
    )
    options = parser.parse_args()
    for part in options.only:
        PARTS[part](options)


def measure_taught(options: argparse.Namespace) -> None:
    """Print the table of a model that is taught to find facts."""
    generator = torch.Generator().manual_seed(5)
    contexts = [haystack(NEEDLE_TOKENS, generator).token_ids for _ in range(NUM_WEIGHED)]
    watched = Watched(train_model(options.seed), contexts)
    cases = take_first(facts(watched, NUM_NEEDLE_STEPS), NUM_NEEDLE_STEPS)
    show(f"a model taught to find facts, {NEEDLE_TOKENS} tokens", watched, cases)


def measure_demo(_options: argparse.Namespace) -> None:
    """Print the table of the demo's model that was trained on record."""
    directory = ensure_demo_model()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [tokenizer(text, truncation=False).input_ids for text in load_documents().values()]
    contexts = [ids[:DEMO_TOKENS] for ids in texts[:NUM_WEIGHED]]
    watched = Watched(model.eval().requires_grad_(False), contexts)
    cases = take_first(prose(watched, tokenizer, NUM_DEMO_STEPS), NUM_DEMO_STEPS)
    show(f"the demo's model, {DEMO_TOKENS} tokens of the Python reference", watched, cases)


def measure_real(options: argparse.Namespace) -> None:
    """Print the table of the real model."""
    workload = {"bfloat16": R16, "float32": R32}[options.dtype]
    real_sources.run(workload, options.prompts, options.head_weights, leaves_out=options.leave_out)


PARTS = {"real": measure_real, "taught": measure_taught, "demo": measure_demo}


if __name__ == "__main__":
    main()
