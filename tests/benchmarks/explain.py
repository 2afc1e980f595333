"""`make bench-explain`: how faithful explanations are, and what they cost.

The real model, SmolLM2-135M-Instruct, is asked about one of six facts in a paragraph
(`questions.MEASURING`), and answers right. Each method scores the sentences of the prompt for the
answer's first token.

- recall at 1 and 3: part of the prompts in which the fact's sentence is the best, or among the
  three best, of the paragraph's.
- removed, hidden: linear datamodeling score, the rank correlation of what the scores predict for 32
  random ablations and what these do; none of them was fitted.
- left: part of the answer's probability that is left while the best-scored sentences of the
  paragraph are removed, averaged over one, two and four of its eight; lower is better.
- seconds: time of a prompt; 0 for what the answer's own pass gives.

Results are kept in build/bench, and a run that was stopped goes on where it was.

`--only reuse` compares leaving out with whole passes, in processor time, and prints the time to a
first answer and to its trust. `--only memory` prints how memory grows with the context.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import real_sources
import torch
from engine import options as engine_options
from explained import (
    ALIKE,
    FITTED,
    STREAM,
    Case,
    attribute,
    ignore,
    list_cases,
    list_methods,
)
from peak import read_peak_bytes, reset_peak
from questioned import Questioned
from resampling import resample
from workloads import BUILD, R16, R32, find_directory, prompt

from whence_server.engines.transformers.internals.head_weights import read_head_weights
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.explain.ablated_values import AblatedValues
from whence_server.explain.leave_one_out import leave_one_out, leave_out_each
from whence_server.explain.leave_one_out_hierarchy import leave_out_by_levels
from whence_server.explain.masks import draw_equal_halves
from whence_server.explain.operators import Operator
from whence_server.explain.rank_correlation import correlate_ranks
from whence_server.explain.segment_units import Unit
from whence_server.explain.segments import Segment, divide, read_texts
from whence_server.explain.target import Target
from whence_server.explain.trust import NUM_HELD_OUT, measure_trust
from whence_server.text.tokenizer import TextTokenizer

HELD_OUT_SEED = 999
DELETED = (1, 2, 4)
"""Numbers of the paragraph's sentences that are removed."""
NUM_SAMPLED = 9
"""Segments that are left out by whole passes, whose time stands for all of them."""
LONG = {"num_others": 7, "num_asides": 6}
"""Sizes of a paragraph with 16 sentences, some 200 tokens of context."""


class Result(NamedTuple):
    """Results of one method on one case."""

    at_1: float
    at_3: float
    removed: float
    hidden: float
    left: float
    seconds: float


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Measures explanations on the real model.")
    parser.add_argument("--prompts", type=int, default=4, help="100 for the long form")
    parser.add_argument(
        "--all", action="store_true", help="with heads fitted, and integrated gradients: minutes"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    workload = {"float32": R32, "bfloat16": R16}[options.dtype]
    directory = find_directory(workload)
    loaded = load(engine_options(workload))
    print(f"{workload}, {torch.get_num_threads()} threads", flush=True)
    for part in options.only:
        PARTS[part](loaded, directory, workload, options)


def measure_methods(
    loaded: LoadedModel, directory: Path, workload: Any, options: argparse.Namespace
) -> None:
    """Print the table of all methods."""
    thetas = {ALIKE: torch.ones(1)}
    if options.all:
        path = real_sources.fit_heads(workload, directory)
        values = read_head_weights(str(path), loaded.info.weights_digest).values
        thetas[STREAM] = real_sources.weigh_by_stream(loaded.model, str(directory))
        thetas[FITTED] = torch.tensor(values).flatten()
    methods = list_methods(loaded, thetas, with_slow=options.all)
    questioned = Questioned(loaded, str(directory))
    path = BUILD / f"explain-{workload.name}-{len(methods)}-{torch.get_num_threads()}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.open()] if path.exists() else []
    results: dict[str, list[Result]] = {name: [] for name in methods}
    with path.open("a") as file:
        for number, case in enumerate(list_cases(loaded, questioned, options.prompts)):
            if number < len(known):
                found = {name: Result(*row) for name, row in known[number].items()}
            else:
                judge = Judge(loaded.model, case)
                found = {name: judge.measure(method) for name, method in methods.items()}
                file.write(json.dumps(found) + "\n")
                file.flush()
            for name, result in found.items():
                results[name].append(result)
    show(results)


class Judge:
    """Judge of the attributions of one case; ablations are shared between methods."""

    def __init__(self, model: Any, case: Case) -> None:
        self._case = case
        self._reader = AblatedValues(model, case.target, case.segments)
        self._halves = draw_equal_halves(len(case.segments), NUM_HELD_OUT, HELD_OUT_SEED)
        self._held_out = {
            operator: self._reader.measure(self._halves, operator, ignore) for operator in Operator
        }
        self._known: dict[bytes, float] = {}
        (self._whole,) = self._remove(np.ones((1, len(case.segments)), bool))

    def measure(self, method: Callable[[Case], "np.ndarray[Any, Any]"]) -> Result:
        """Return the results of a method."""
        case = self._case
        scores, seconds = attribute(method, case)
        order = sorted(case.paragraph, key=lambda i: -scores[i])
        removed, hidden = (
            correlate_ranks(self._halves @ scores, self._held_out[operator]).value
            for operator in Operator
        )
        kept = np.ones((len(DELETED), len(scores)), bool)
        for row, count in zip(kept, DELETED, strict=True):
            row[order[:count]] = False
        left = np.exp(np.minimum(self._remove(kept) - self._whole, 0)).mean()
        at_1, at_3 = (float(case.fact in order[:count]) for count in (1, 3))
        return Result(at_1, at_3, removed, hidden, float(left), seconds)

    def _remove(self, kept: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        unknown = [i for i, row in enumerate(kept) if row.tobytes() not in self._known]
        if unknown:
            values = self._reader.measure(kept[unknown], Operator.REMOVE, ignore)
            for i, value in zip(unknown, values, strict=True):
                self._known[kept[i].tobytes()] = float(value)
        return np.array([self._known[row.tobytes()] for row in kept])


def show(results: dict[str, list[Result]]) -> None:
    """Print a row for each method, with the interval of 95 of 100 resamplings."""
    num = len(next(iter(results.values())))
    print(f"\n{num} prompts:\n")
    print("| method | recall at 1 | recall at 3 | LDS, removed | LDS, hidden | left | seconds |")
    print("| --- |" + " ---: |" * 6)
    for name, found in results.items():
        columns = list(zip(*found, strict=True))
        cells = [f"{np.mean(columns[0]):.2f}", f"{np.mean(columns[1]):.2f}"]
        for column in columns[2:5]:
            mean, low, high = resample([float(value) for value in column])
            cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        cells.append(f"{np.mean(columns[5]):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure_reuse(
    loaded: LoadedModel, directory: Path, _workload: Any, _options: argparse.Namespace
) -> None:
    """Print how much faster leaving out is than whole passes, and the times of a first answer."""
    questioned = Questioned(loaded, str(directory))
    (case,) = list_cases(loaded, questioned, 1, **LONG)
    tokenizer = TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)
    context = case.target.context
    words, _ = divide(read_texts(tokenizer, context), Unit.WORDS)
    print(f"\nleave one out, {len(context)} tokens of context, equal values:\n")
    print(
        "| segments | whole passes | logits of the span alone | reused | ratio to each | waited |"
    )
    print("| --- |" + " ---: |" * 5)
    exact = {}
    for name, segments in (("sentences", case.segments), ("words", words)):
        sample = np.linspace(0, len(segments), NUM_SAMPLED, dtype=int)
        naive, naive_s = _leave_out_naively(loaded.model, case, segments, sample, keeps_all=True)
        _, lean_s = _leave_out_naively(loaded.model, case, segments, sample, keeps_all=False)
        started, first = time.process_time(), time.perf_counter()
        scores = leave_one_out(loaded.model, case.target, segments, {}, ignore)
        ours_s, waited_s = time.process_time() - started, time.perf_counter() - first
        exact[name] = np.array(scores.values)
        ours = [scores.value, *(scores.value - exact[name])]
        np.testing.assert_allclose(np.array(ours)[sample], naive, rtol=1e-3, atol=2e-3)
        print(
            f"| {len(segments)} {name} | {naive_s:.1f} s | {lean_s:.1f} s | {ours_s:.1f} s | "
            f"{naive_s / ours_s:.2f}, {lean_s / ours_s:.2f} | {waited_s:.1f} s |",
            flush=True,
        )
        whole_s = naive_s
    started = time.process_time()
    found = leave_out_by_levels(loaded.model, case.target, (case.segments, words), {}, ignore)
    levels_s = time.process_time() - started
    best, rough = (
        set(np.argsort(-np.abs(scores))[:5].tolist())
        for scores in (exact["words"], np.array(found.scores.values))
    )
    print(
        f"\nby levels, approximate: {levels_s:.1f} s, {whole_s / levels_s:.1f} times as fast as "
        f"whole passes; agreement told {found.agreement}; {len(best & rough)} of the 5 words with "
        "the largest effect found"
    )
    started = time.perf_counter()
    trust = measure_trust(
        loaded.model,
        case.target,
        case.segments,
        exact["sentences"].tolist(),
        ignore,
        fitted=Operator.REMOVE,
    )
    print(
        f"trust of the sentences: {time.perf_counter() - started:.1f} s, "
        f"{trust.num_passes} passes, correlation {trust.correlation.value:.2f} "
        f"({trust.correlation.low:.2f} to {trust.correlation.high:.2f}), {trust.verdict.value}",
        flush=True,
    )


@torch.inference_mode()
def _leave_out_naively(
    model: Any, case: Case, segments: Any, sample: "np.ndarray[Any, Any]", *, keeps_all: bool
) -> tuple[list[float], float]:
    """Leave out some segments by a whole pass each, with all logits or with those of the span.

    Returns:
        The explained value of each, and the processor time that all segments would take.
    """
    rows = leave_out_each(len(segments))
    started = time.process_time()
    values = []
    for kept in rows[sample]:
        gone = {
            i
            for segment, stays in zip(segments, kept, strict=True)
            if not stays
            for i in range(*segment)
        }
        ids = [token for i, token in enumerate(case.target.ids) if i not in gone]
        arguments = {} if keeps_all else {"logits_to_keep": 2}
        logits = model(input_ids=torch.tensor([ids]), use_cache=False, **arguments).logits[0, -2]
        values.append(float(logits.float().log_softmax(-1)[ids[-1]]))
    return values, (time.process_time() - started) * len(rows) / len(sample)


def measure_memory(
    loaded: LoadedModel, _directory: Path, _workload: Any, _options: argparse.Namespace
) -> None:
    """Print by how much the process grows, as the context grows."""
    print("\nleave one out of eight segments:\n\n| tokens of context | increase of memory |")
    print("| ---: | ---: |")
    for length in (1024, 2048, 4096):
        target = Target(tuple(prompt(1, 40_000, length + 1)), length, length)
        size = length // 8
        segments = [Segment(begin, begin + size) for begin in range(0, length, size)]
        reset_peak()
        before = read_peak_bytes()
        # The last one alone: the others take longer, and no more memory.
        reader = AblatedValues(loaded.model, target, segments)
        reader.measure(leave_out_each(8)[[0, 8]], Operator.REMOVE, ignore)
        print(f"| {length:,} | {(read_peak_bytes() - before) >> 20:,} MiB |", flush=True)
        del reader


PARTS = {"methods": measure_methods, "reuse": measure_reuse, "memory": measure_memory}


if __name__ == "__main__":
    main()
