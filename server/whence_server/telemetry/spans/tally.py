"""Sums of consecutive steps, for the attributes of their `decode_block` span."""

from whence.summary import Likelihood, Likelihoods, shorten_float32
from whence.v1.step_pb2 import Step
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.steps import compute_step_interval


class Tally:
    """Sums of consecutive steps of one sequence.

    Float32 values are added in float64 in the order of the steps, so that the same steps give the
    same bytes.

    Args:
        start_time_ns: the request's arrival in Unix nanoseconds.
        first: the first step.
    """

    def __init__(self, start_time_ns: int, first: Step) -> None:
        self._start_time_ns = start_time_ns
        self.sequence_index = first.sequence_index
        self.first_index = first.index
        self.last_index = first.index
        self.start, self.end = compute_step_interval(start_time_ns, first.index, first.timing)
        self._num_steps = 0
        self._token_ids: list[int] | None = []
        self._logprobs: list[float] = []
        self._sampling_logprobs: list[float] = []
        self._ranks: list[int] = []
        self._entropies: list[tuple[float, int]] = []
        self._likelihood = Likelihood()
        self._margins: list[tuple[float, int]] = []
        self._batch_size = self._forward_ns = self._select_ns = 0
        self.add(first)

    def add(self, step: Step) -> None:
        """Add the next step."""
        timing, index = step.timing, step.index
        self.last_index = index
        self.end = max(self.end, compute_step_interval(self._start_time_ns, index, timing)[1])
        self._num_steps += 1
        self._likelihood.add(step)
        self._batch_size += timing.batch_size
        self._forward_ns += timing.forward_ns
        self._select_ns += timing.select_ns
        if not step.HasField("token_id"):
            self._token_ids = None
        elif self._token_ids is not None:
            self._token_ids.append(step.token_id)
        if step.HasField("logprob"):
            self._logprobs.append(step.logprob)
        if step.HasField("sampling_logprob"):
            self._sampling_logprobs.append(step.sampling_logprob)
        if step.HasField("rank"):
            self._ranks.append(step.rank)
        if step.HasField("entropy"):
            self._entropies.append((step.entropy, -index))
        if step.draw.HasField("margin"):
            self._margins.append((step.draw.margin, index))

    @property
    def likelihood(self) -> Likelihoods:
        """Probabilities of the steps so far."""
        return Likelihoods([self._likelihood])

    def make_attributes(self) -> dict[str, AttributeValue | None]:
        """Return the span's attributes; None marks those whose field no step had."""
        max_entropy, at_max_entropy = max(self._entropies, default=(None, 0))
        min_margin, at_min_margin = min(self._margins, default=(None, 0))
        entropies = [entropy for entropy, _ in self._entropies]
        return {
            names.SEQUENCE_INDEX: self.sequence_index,
            names.BLOCK_FIRST_INDEX: self.first_index,
            names.BLOCK_LAST_INDEX: self.last_index,
            names.BLOCK_NUM_STEPS: self._num_steps,
            names.BLOCK_TOKEN_IDS: self._token_ids,
            names.BLOCK_LOGPROB: sum(self._logprobs) if self._logprobs else None,
            names.BLOCK_SAMPLING_LOGPROB: sum(self._sampling_logprobs)
            if self._sampling_logprobs
            else None,
            names.BLOCK_MIN_LOGPROB: _shorten(min(self._logprobs, default=None)),
            names.BLOCK_MAX_RANK: max(self._ranks, default=None),
            names.BLOCK_MEAN_ENTROPY: sum(entropies) / len(entropies) if entropies else None,
            names.BLOCK_MAX_ENTROPY: _shorten(max_entropy),
            names.BLOCK_MAX_ENTROPY_INDEX: None if max_entropy is None else -at_max_entropy,
            names.BLOCK_MIN_DRAW_MARGIN: _shorten(min_margin),
            names.BLOCK_MIN_DRAW_MARGIN_INDEX: None if min_margin is None else at_min_margin,
            **self._describe_passes(),
        }

    def _describe_passes(self) -> dict[str, AttributeValue | None]:
        if not self._batch_size:
            return {}  # an upstream tells nothing of its forward passes
        return {
            names.BLOCK_MEAN_BATCH_SIZE: self._batch_size / self._num_steps,
            names.BLOCK_FORWARD_NS: self._forward_ns,
            names.BLOCK_SELECT_NS: self._select_ns,
        }


def _shorten(value: float | None) -> float | None:
    return None if value is None else shorten_float32(value)
