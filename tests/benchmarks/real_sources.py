"""Sources of the real model: do they name the sentence that an answer came from?

Prompts are those of `questions.MEASURING` that the model answers right by its likeliest token.
Sentences are ranked by the sum of their tokens' shares.

- recall at 1: part of the prompts whose fact is in the sentence that comes first;
- left: part of the answer's probability that is left while the first sentence, and the first two,
  are hidden from all layers; lower is better. The area is their mean.

"One left out" ranks by the effect of hiding each sentence alone, which takes as many passes as
there are sentences: an upper bound. Results are kept in `build/bench`, and a run that was stopped
goes on where it was.
"""

import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from engine import options
from questioned import Asked, Questioned
from questions import (
    MEASURING,
    NUM_ALIKE,
    NUM_ASIDES,
    NUM_OTHERS,
    make_documents,
    make_prompt,
)
from resampling import format_interval
from transformers import AutoTokenizer
from workloads import BUILD, Workload, find_directory

from whence_server.engines.transformers.internals.head_weights import read_head_weights
from whence_server.engines.transformers.internals.sinks import find_sinks
from whence_server.engines.transformers.internals.weighing import compute_stream_weights
from whence_server.engines.transformers.loading import load
from whence_server.training.weigh_heads import weigh_heads

ALIKE, STREAM, FITTED = (
    f"value norms, heads {how}" for how in ("alike", "weighed", "fitted to ablations")
)
MEAN, NEWEST, LEFT_OUT = "mean attention", "newest first", "one left out"
NUM_HIDDEN = 2
NUM_SENTENCES = NUM_ALIKE + NUM_OTHERS + NUM_ASIDES
NUM_WEIGHED = 16
"""Prompts from which heads are weighed by the stream's norms."""
MAX_TRIES = 20
"""Most prompts for each that counts."""
SEED, FIT_SEED = 1, 2
NUM_FITTED = 120


class Row(NamedTuple):
    """Results of one prompt.

    Attributes:
        ranks: for each ranking, the rank of the sentence with the fact; 0 is the first.
        left: for each ranking, what is left of the answer's probability, by hidden sentences.
        sink: share of the sinks with heads alike.
        sink_attention: mean attention to the sinks.
    """

    ranks: dict[str, int]
    left: dict[str, list[float]]
    sink: float
    sink_attention: float


def run(
    workload: Workload, num_prompts: int, head_weights: str = "", *, leaves_out: bool = False
) -> None:
    """Measure, and print the table.

    Args:
        workload: a real model.
        num_prompts: number of prompts that count.
        head_weights: file of fitted head weights; "" to fit them, once.
        leaves_out: True to rank by leaving out each sentence too.
    """
    directory = find_directory(workload)
    head_weights = head_weights or str(fit_heads(workload, directory))
    loaded = load(options(workload))
    model = Questioned(loaded, str(directory))
    fitted = read_head_weights(head_weights, loaded.info.weights_digest)
    thetas = {
        STREAM: weigh_by_stream(loaded.model, str(directory)),
        FITTED: torch.tensor(fitted.values).flatten(),
    }
    name = f"{workload.name}-{fitted.digest[:8]}-{int(leaves_out)}"
    rows = _measure(
        model, thetas, BUILD / f"sources-{name}.jsonl", num_prompts, leaves_out=leaves_out
    )
    show(f"{workload}: {len(rows)} prompts", rows)


def fit_heads(workload: Workload, directory: Path) -> Path:
    """Return a file of head weights fitted to ablations of prompts, with their answers."""
    path = BUILD / f"head-weights-{workload.name}-{NUM_FITTED}-{FIT_SEED}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for i, text in enumerate(make_documents(NUM_FITTED, FIT_SEED)):
                (Path(folder) / f"{i:04}.txt").write_text(text)
            print(weigh_heads(directory, [Path(folder)], path, dtype=workload.dtype, seed=0))
    return path


def weigh_by_stream(model: Any, directory: str) -> torch.Tensor:
    """Return the head weights that `weigh-heads` makes of some of the fitting prompts: [K]."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    documents = make_documents(NUM_WEIGHED, SEED)
    pieces = [tokenizer(text).input_ids for text in documents]
    return torch.tensor(compute_stream_weights(model, pieces)).flatten()


def _measure(
    model: Questioned,
    thetas: dict[str, torch.Tensor],
    path: Path,
    num_prompts: int,
    *,
    leaves_out: bool,
) -> list[Row]:
    """Return the results of the prompts that count, those in the file included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.open()] if path.exists() else []
    rng = random.Random(SEED)
    rows: list[Row] = []
    with path.open("a") as file:
        for number in range(num_prompts * MAX_TRIES):
            if len(rows) == num_prompts:
                return rows
            prompt = make_prompt(MEASURING, rng, is_chat=number % 2 == 1)
            if number < len(known):
                found = known[number]
            else:
                asked = model.read(prompt)
                row = asked and measure_prompt(
                    model, asked, prompt.fact, thetas, leaves_out=leaves_out
                )
                found = row and row._asdict()
                file.write(json.dumps(found) + "\n")
                file.flush()
            if found is not None:
                rows.append(Row(**found))
    raise RuntimeError("the model answers next to none of the questions")


def measure_prompt(
    model: Questioned, asked: Asked, fact: int, thetas: dict[str, torch.Tensor], *, leaves_out: bool
) -> Row:
    """Return the results of one prompt."""
    logprobs: dict[frozenset[int], float] = {}

    def measure(hidden: list[int]) -> float:
        key = frozenset(hidden)
        if key not in logprobs:
            logprobs[key] = model.measure_without(asked, key)
        return logprobs[key]

    orders = rank_sentences(asked, thetas)
    if leaves_out:
        orders[LEFT_OUT] = sorted(range(NUM_SENTENCES), key=lambda i: measure([i]))
    sinks = find_sinks(asked.attention.mean(0)[None], asked.norms.sum(0)[None])[0]
    shares = (asked.attention * asked.norms).sum(0)
    return Row(
        {name: order.index(fact) for name, order in orders.items()},
        {
            name: [
                math.exp(min(measure(order[:num]) - asked.logprob, 0))
                for num in range(1, NUM_HIDDEN + 1)
            ]
            for name, order in orders.items()
        },
        float(shares[sinks].sum() / shares.sum()),
        float(asked.attention.mean(0)[sinks].sum()),
    )


def rank_sentences(asked: Asked, thetas: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """Return the sentences in the order of each ranking that costs no pass."""
    read = asked.attention * asked.norms
    scores = {
        MEAN: asked.attention.sum(0),
        ALIKE: read.sum(0),
        **{name: (read * theta.unsqueeze(1)).sum(0) for name, theta in thetas.items()},
    }
    orders = {
        name: sorted(
            range(NUM_SENTENCES), key=lambda i, of=of: -float(of[slice(*asked.sentences[i])].sum())
        )
        for name, of in scores.items()
    }
    return orders | {NEWEST: list(reversed(range(NUM_SENTENCES)))}


def show(what: str, rows: list[Row]) -> None:
    """Print the table, and the differences to mean attention, prompt by prompt."""
    hidden = " | ".join(f"left, {num} hidden" for num in range(1, NUM_HIDDEN + 1))
    print(f"\n{what}:\n\n| ranking | recall at 1 | area | {hidden} |")
    print("| --- |" + " ---: |" * (2 + NUM_HIDDEN))
    for name in rows[0].ranks:
        curve = torch.tensor([row.left[name] for row in rows]).mean(0).tolist()
        points = " | ".join(f"{point:.2f}" for point in curve)
        print(f"| {name} | {_mean(_recalls(rows, name)):.3f} | {_mean(curve):.3f} | {points} |")
    for direct, others in (
        (MEAN, [name for name in rows[0].ranks if name != MEAN]),
        (ALIKE, [FITTED]),
    ):
        print(f"\nmore than {direct}, prompt by prompt (95% of resamplings):\n")
        for name in others:
            recall, area = (
                format_interval(
                    [a - b for a, b in zip(of(rows, name), of(rows, direct), strict=True)]
                )
                for of in (_recalls, _areas)
            )
            print(f"- {name}: recall {recall}, area {area}")
    print(
        f"\nsinks have {_mean([row.sink for row in rows]):.0%} of the shares with heads alike, and "
        f"{_mean([row.sink_attention for row in rows]):.0%} of the attention",
        flush=True,
    )


def _recalls(rows: list[Row], name: str) -> list[float]:
    return [float(row.ranks[name] == 0) for row in rows]


def _areas(rows: list[Row], name: str) -> list[float]:
    return [_mean(row.left[name]) for row in rows]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
