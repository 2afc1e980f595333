"""`make bench-sources`: how faithful direct sources are, against rankings that cost nothing.

Of a small model that was taught to find planted facts, and of the demo's model:

- recall: how much of the fact that is asked for (its key and values) is among the tenth of the
  context that a ranking puts first;
- share: how much of the ranking's whole weight falls on the fact, where it is a weight;
- deletion: positions are hidden from all layers, best first, and what is left of the answer's
  probability is averaged over the share that is hidden, from 0 to a half. Lower is better.

Rankings: direct sources, mean attention over all layers and heads, the newest first, at random.
Steps count where the model answers right (facts), or where the context makes the token at least
`MIN_NATS` likelier than its last position alone does (demo).
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import torch
from needle import haystack, trained_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence_server.demo.corpus import documents
from whence_server.demo.model import demo_model
from whence_server.engine.cache import BatchedCache
from whence_server.engine.internals import attention
from whence_server.engine.internals.examine import look_inside
from whence_server.engine.internals.sources import drawn
from whence_server.engine.internals.watching import watching
from whence_server.engine.probe import examine

LEVELS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares of the context that are hidden."""
TOP = 0.1
NEEDLE_TOKENS = 480
NUM_NEEDLE_STEPS = 120
DEMO_TOKENS = 192
NUM_DEMO_STEPS = 60
MIN_NATS = 2.0
RANKINGS = ("direct sources", "mean attention", "newest first", "random")


class Case(NamedTuple):
    """One step: a context, what follows, and where the fact stands that it needs."""

    token_ids: list[int]
    answer: int
    needle: list[int]


class Seen:
    """A model with its attention watched, as it is served.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        obstacle = attention.adopt(model)
        self._style = examine(model)
        self._inside, _ = look_inside(model, self._style, obstacle, None)

    @torch.inference_mode()
    def rankings(self, token_ids: list[int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Scores of all positions but the newest, for each of `RANKINGS`.

        Of the weights among them, the newest position's share is missing to 1.
        """
        assert self._style is not None
        assert self._inside.norms is not None
        cache = BatchedCache(self._style.num_layers, len(token_ids))
        with watching(self._inside) as watch:
            self.model(input_ids=torch.tensor([token_ids]), past_key_values=cache, use_cache=True)
        weights = watch.seen.weights
        norms = self._inside.norms.of([values[0] for values in cache.values])
        found = (
            drawn(weights, norms.unsqueeze(0), None)[0],
            torch.cat(weights, 1)[0].mean(0),
            torch.arange(len(token_ids)).float(),
            torch.rand(len(token_ids), generator=generator),
        )
        found = tuple(scores / scores.sum() for scores in found)
        return {name: scores[:-1] for name, scores in zip(RANKINGS, found, strict=True)}

    @torch.inference_mode()
    def logprobs(self, case: Case, hidden: list[torch.Tensor]) -> torch.Tensor:
        """Of the answer, once for each set of hidden positions."""
        length = len(case.token_ids)
        mask = torch.ones(len(hidden), length, dtype=torch.int64)
        for row, positions in enumerate(hidden):
            mask[row, positions] = 0
        logits = self.model(
            input_ids=torch.tensor([case.token_ids]).expand(len(hidden), -1),
            attention_mask=mask,
            position_ids=torch.arange(length).expand(len(hidden), -1),
        ).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)[:, case.answer]


def facts(seen: Seen) -> Iterator[Case]:
    """Steps that answer what was asked for, where the model knows it."""
    generator = torch.Generator().manual_seed(1)
    while True:
        row = haystack(NEEDLE_TOKENS, generator)
        # One question each: a later one could be read off an earlier one's answer.
        for place in row.answers[0]:
            case = Case(row.token_ids[:place], row.token_ids[place], row.needles[0])
            logprob = seen.logprobs(case, [torch.tensor([], dtype=torch.int64)])
            if float(logprob) > -0.7:  # more likely than not
                yield case


def prose(seen: Seen, tokenizer: Any) -> Iterator[Case]:
    """Steps of the Python reference that depend on their context."""
    generator = torch.Generator().manual_seed(1)
    texts = [tokenizer(text, truncation=False).input_ids for text in documents()]
    texts = [ids for ids in texts if len(ids) > DEMO_TOKENS]
    while True:
        ids = texts[int(torch.randint(len(texts), (1,), generator=generator))]
        begin = int(torch.randint(len(ids) - DEMO_TOKENS, (1,), generator=generator))
        context = ids[begin : begin + DEMO_TOKENS]
        with torch.inference_mode():
            answer = int(seen.model(input_ids=torch.tensor([context])).logits[0, -1].argmax())
        case = Case(context, answer, [])
        nothing = torch.tensor([], dtype=torch.int64)
        whole, alone = seen.logprobs(case, [nothing, torch.arange(DEMO_TOKENS - 1)])
        if float(whole - alone) >= MIN_NATS:
            yield case


def measure(seen: Seen, cases: Iterator[Case], num_cases: int) -> None:
    """Prints a row for each ranking."""
    generator = torch.Generator().manual_seed(2)
    recalls: dict[str, list[float]] = {name: [] for name in RANKINGS}
    shares: dict[str, list[float]] = {name: [] for name in RANKINGS}
    left: dict[str, list[torch.Tensor]] = {name: [] for name in RANKINGS}
    for _, case in zip(range(num_cases), cases, strict=False):
        for name, scores in seen.rankings(case.token_ids, generator).items():
            order = scores.argsort(descending=True)
            hidden = [order[: round(level * len(order))] for level in LEVELS]
            logprobs = seen.logprobs(case, hidden)
            left[name].append((logprobs - logprobs[0]).exp())
            if case.needle:
                first = set(order[: round(TOP * len(order))].tolist())
                shares[name].append(float(scores[case.needle].sum()))
                recalls[name].append(len(first & set(case.needle)) / len(case.needle))
    for name in RANKINGS:
        curve = torch.stack(left[name]).mean(0)
        area = float(torch.trapezoid(curve, torch.tensor(LEVELS))) / LEVELS[-1]
        recall = f"{_mean(recalls[name]):.2f}" if recalls[name] else ""
        is_weight = name in RANKINGS[:2] and shares[name]
        share = f"{_mean(shares[name]):.2f}" if is_weight else ""
        points = " | ".join(f"{float(point):.2f}" for point in curve[2:6])
        print(f"| {name} | {recall} | {share} | {area:.3f} | {points} |", flush=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def show(what: str, seen: Seen, cases: Callable[[Seen], Iterator[Case]], num_cases: int) -> None:
    levels = " | ".join(f"{level:.0%} hidden" for level in LEVELS[2:6])
    print(f"\n{what}; {num_cases} steps:\n")
    print(f"| ranking | recall in the top {TOP:.0%} | share | area under deletion | {levels} |")
    print("| --- |" + " ---: |" * 7)
    measure(seen, cases(seen), num_cases)


def main() -> None:
    show(
        f"a model taught to find facts, {NEEDLE_TOKENS} tokens",
        Seen(trained_model()),
        facts,
        NUM_NEEDLE_STEPS,
    )
    directory = demo_model()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    show(
        f"the demo's model, {DEMO_TOKENS} tokens of the Python reference",
        Seen(model.eval().requires_grad_(False)),
        lambda seen: prose(seen, tokenizer),
        NUM_DEMO_STEPS,
    )


if __name__ == "__main__":
    main()
