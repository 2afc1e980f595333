"""Noise of a model's arithmetic, measured: decoding step by step against one pass.

The same weights give logits that differ by rounding if passes are divided in other ways: a batch of
another size, another chunk of the prompt, another number of threads. Fixed texts are continued in
each of these ways, and read again as a verification reads them.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from whence_server.analysis.replay.passes import Reader
from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.decisions import NoChoice
from whence_server.engines.transformers.decoding.rows import Row
from whence_server.text.tokenizer import TextEncoder

METHOD = "decode-against-pass/1"
"""Version of the measurement: another one is measured again."""
SAFETY = 3.0
"""Factor between the largest measured difference and the margin; docs/replay.md has its reason."""
ROOT_MEAN_SQUARE_SAFETY = 2.0
"""Factor between the largest root mean square of a text and the limit of a generation."""

MEASURED_STEPS = 40
"""Steps with which each text is continued."""
_NUM_CANDIDATES = 8
_SEED = 20251120
_TEXTS = (
    "The river rises in the hills north of the town, and",
    "def compute_mean(values):\n    total = 0\n    for value in values:\n",
    "Q: What is the capital of France?\nA: Paris.\nQ: How many legs has a spider?\nA:",
    (
        "In 1969, three people travelled to the Moon. Two of them walked on it; the third stayed "
        "in orbit, and saw the far side alone. On their way back they wrote down what they had "
        "seen: grey dust, long shadows, a black sky at noon, and the Earth, small, blue and white, "
        "above the horizon. Many years later, one of them said that"
    ),
)


class Noise(NamedTuple):
    """Measured noise; see `ArithmeticNoise` in verification.proto."""

    largest: float
    root_mean_square: float
    """Value of the text for which it is largest."""
    num_logprobs: int
    measured_at_ns: int

    @property
    def margin(self) -> float:
        """Difference up to which a logprob or a choice is within the noise, in nats."""
        return max(self.largest * SAFETY, _LEAST_MARGIN)

    @property
    def root_mean_square_limit(self) -> float:
        """Limit of the root mean square of a generation's differences, in nats."""
        return max(self.root_mean_square * ROOT_MEAN_SQUARE_SAFETY, _LEAST_MARGIN / 4)


_LEAST_MARGIN = 1e-5
"""Margin of a model whose passes give equal bits: the rounding of a recorded float32."""


class _Decoded(NamedTuple):
    """A continued text, with logprobs of some tokens of each step, by their ids."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[dict[int, float]]


def measure_noise(
    reader: Reader, chooser: Chooser, tokenizer: TextEncoder, max_length: int
) -> Noise:
    """Measure the noise of a model; takes some 400 decoding steps.

    Args:
        reader: of the model.
        chooser: of the model.
        tokenizer: of the model.
        max_length: context length of the model.
    """
    prompts = [_encode(tokenizer, text, max_length, reader.vocabulary_size) for text in _TEXTS]
    num_threads = torch.get_num_threads()
    decoded = _decode(reader, chooser, [prompts[0]], 16)
    decoded += _decode(reader, chooser, [prompts[3]], 512)
    decoded += _decode(reader, chooser, [*prompts, *prompts], 512)
    if reader.runner.is_on_cpu if hasattr(reader.runner, "is_on_cpu") else True:
        # A generation may have had another number of threads.
        torch.set_num_threads(1 if num_threads > 1 else 2)
        try:
            decoded += _decode(reader, chooser, prompts[2:], 16)
        finally:
            torch.set_num_threads(num_threads)
    largest, largest_square, num_logprobs = 0.0, 0.0, 0
    for each in decoded:
        differences = _compare(reader, each)
        squares = [difference * difference for difference in differences]
        largest = max(largest, *differences)
        largest_square = max(largest_square, sum(squares) / len(squares))
        num_logprobs += len(differences)
    return Noise(largest, math.sqrt(largest_square), num_logprobs, time.time_ns())


def _encode(tokenizer: TextEncoder, text: str, max_length: int, vocabulary_size: int) -> list[int]:
    ids = [token_id for token_id in tokenizer.encode(text) if token_id < vocabulary_size]
    return ids[: max(1, max_length - MEASURED_STEPS - 1)] or [1]


def _decode(
    reader: Reader, chooser: Chooser, prompts: Sequence[list[int]], chunk: int
) -> list[_Decoded]:
    """Continue texts together by drawn tokens."""
    runner = reader.runner
    decoding = Decoding(Strategy.SAMPLE, MEASURED_STEPS, seed=_SEED)
    trace = TraceOptions(TraceDetail.DECISIONS, _NUM_CANDIDATES)
    rows = [Row(decoding, trace, i, prompt) for i, prompt in enumerate(prompts)]
    decoded = [_Decoded(prompt, [], []) for prompt in prompts]
    logits = []
    for prompt in prompts:
        reading = runner.start(prompt)
        while reading.num_left:
            size = min(chunk, reading.num_left) if reader.batched else len(prompt)
            newest = runner.prefill(reading, size, all_logits=False)
        logits.append(newest[-1:].clone())
        runner.join(reading)
    try:
        together = torch.cat(logits)
        for _ in range(MEASURED_STEPS):
            newest_ids = _choose(chooser, together, rows, decoded)
            together = runner.decode(newest_ids)
    finally:
        runner.clear()
    return decoded


def _choose(
    chooser: Chooser, logits: torch.Tensor, rows: Sequence[Row], decoded: Sequence[_Decoded]
) -> list[int]:
    ids = []
    for decision, row, each in zip(chooser.choose(logits, rows), rows, decoded, strict=True):
        if isinstance(decision, NoChoice):
            raise TypeError(f"the model's noise cannot be measured: {decision.message}")
        kept = {decision.token_id: decision.logprob or 0.0}
        if decision.candidates is not None:
            kept |= dict(
                zip(decision.candidates.token_ids, decision.candidates.logprobs, strict=True)
            )
        each.token_ids.append(decision.token_id)
        each.logprobs.append(kept)
        row.append(decision.token_id)
        ids.append(decision.token_id)
    return ids


def _compare(reader: Reader, decoded: _Decoded) -> list[float]:
    """Return the absolute differences of logprobs between decoding and one pass."""
    differences = []
    for first, logits in reader.read_logits(decoded.prompt_ids, decoded.token_ids):
        logprobs = torch.log_softmax(logits.float().cpu(), -1)
        for row, of_step in zip(logprobs, decoded.logprobs[first:], strict=False):
            found = row[torch.tensor(list(of_step))].tolist()
            differences += [abs(a - b) for a, b in zip(of_step.values(), found, strict=True)]
    return differences
