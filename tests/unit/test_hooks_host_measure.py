"""Numbers of a recorded step on the host, against torch in float64."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import (
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from whence.v1.step_pb2 import StepTiming
from whence_hooks.transformers import call as call_module
from whence_hooks.transformers import pending
from whence_hooks.transformers.call import RecordedCall
from whence_hooks.transformers.measure import Layout, Scratch, StepMeter
from whence_hooks.transformers.pending import PendingSteps

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PROCESSORS: dict[str, list[Processor]] = {
    "none": [],
    "temperature-top-p": [TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.95)],
    "filters-only": [TopKLogitsWarper(50), SuppressTokensLogitsProcessor([5, 6])],
    "largest-suppressed": [lambda _, s: s.masked_fill(s == s.amax(-1, keepdim=True), -torch.inf)],
    "filter-before-change": [TopKLogitsWarper(3), TemperatureLogitsWarper(1.7)],
}
NUM_CANDIDATES = 8


def make_stages(names: str, scores: torch.Tensor) -> list[torch.Tensor]:
    stages = [scores]
    for processor in PROCESSORS[names]:
        stages.append(processor(torch.zeros(len(scores), 1, dtype=torch.long), stages[-1]))
    return stages


def make_meter(stages: list[torch.Tensor]) -> StepMeter:
    meter = StepMeter(stages[0], Layout(NUM_CANDIDATES, len(stages) - 1), Scratch())
    for scores in stages[1:]:
        meter.note(scores)
    return meter


def compute_expected(
    stages: list[torch.Tensor], chosen: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    logprobs = [stage[rows].double().log_softmax(-1) for stage in stages]
    entropies = [
        torch.special.entr(one.exp()).sum(-1, keepdim=True) for one in (logprobs[0], logprobs[-1])
    ]
    of_chosen = [one.gather(-1, chosen[:, None]) for one in logprobs]
    own = stages[0][rows]
    ids = own.topk(NUM_CANDIDATES).indices
    return torch.cat(
        [
            *(chosen[:, None], of_chosen[0], of_chosen[-1]),
            (own > own.gather(-1, chosen[:, None])).sum(-1, keepdim=True),
            *entropies,
            *(ids, logprobs[0].gather(-1, ids), logprobs[-1].gather(-1, ids)),
            *((stage[rows] > -torch.inf).sum(-1, keepdim=True) for stage in stages[1:]),
            *of_chosen[1:],
        ],
        -1,
    )


def choose(stages: list[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    return stages[-1][rows].softmax(-1).multinomial(1).squeeze(-1)


SHAPES = [(1, 777), (5, 20_011), (16, 8_192)]
CASES = [
    (names, *shape, masked) for names in PROCESSORS for shape in SHAPES for masked in (False, True)
]


@pytest.mark.parametrize(
    ("names", "num_rows", "num_tokens", "is_masked"), [*CASES, ("temperature-top-p", 2, 9, False)]
)
def test_numbers_of_a_step_equal_those_of_torch(
    names: str, num_rows: int, num_tokens: int, is_masked: bool
) -> None:
    torch.manual_seed(1)
    scores = torch.randn(num_rows, num_tokens) * 4 + 20
    if is_masked:
        scores[:, ::3] = -torch.inf
    stages = make_stages(names, scores)
    rows = torch.arange(num_rows)
    chosen = choose(stages, rows)

    (table,) = make_meter(stages).measure(chosen)

    assert table.numpy() == pytest.approx(
        compute_expected(stages, chosen, rows).numpy(), rel=1e-6, abs=2e-5
    )


def test_several_choices_of_one_row_have_its_numbers() -> None:
    torch.manual_seed(2)
    stages = make_stages("temperature-top-p", torch.randn(3, 8_192) * 4)
    rows = torch.tensor([2, 0, 2, 2])
    chosen = choose(stages, rows)

    (table,) = make_meter(stages).measure(chosen, rows)

    assert table.numpy() == pytest.approx(
        compute_expected(stages, chosen, rows).numpy(), rel=1e-6, abs=2e-5
    )


def test_steps_measured_together_have_the_numbers_of_steps_alone() -> None:
    steps = PendingSteps(Layout(NUM_CANDIDATES, 2))
    expected = []
    torch.manual_seed(3)
    for index in (1, 2, 3):
        stages = make_stages("temperature-top-p", torch.randn(7, 8_192) * 4)
        rows = torch.arange(7)
        chosen = choose(stages, rows)
        flags = torch.zeros(7, dtype=torch.bool)
        flags[index] = True
        steps.add(make_meter(stages), chosen, [flags, ~flags], StepTiming(elapsed_ns=index))
        expected.append((compute_expected(stages, chosen, rows), flags.clone()))
        # A service may use this memory again.
        chosen.zero_()
        flags.zero_()

    taken = steps.take()

    assert [timing.elapsed_ns for _, timing in taken] == [1, 2, 3]
    for (table, _), (numbers, flags) in zip(taken, expected, strict=True):
        width = numbers.shape[1]
        assert table[:, :width] == pytest.approx(numbers.numpy(), rel=1e-6, abs=2e-5)
        assert np.array_equal(table[:, width:], torch.stack([flags, ~flags], -1).numpy())
    assert steps.take() == []


def test_steps_wait_no_longer_than_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = make_stages("none", torch.randn(2, 777))
    rows = torch.arange(2)

    def add(steps: PendingSteps) -> PendingSteps:
        steps.add(make_meter(stages), choose(stages, rows), [rows > 0], StepTiming())
        return steps

    monkeypatch.setattr(pending, "_MAX_WAIT_NS", 10**18)
    assert not PendingSteps(Layout(0, 0)).is_due
    assert not add(PendingSteps(Layout(0, 0))).is_due
    monkeypatch.setattr(pending, "_MAX_BYTES", 2 * 777 * 4)
    assert add(PendingSteps(Layout(0, 0))).is_due
    monkeypatch.setattr(pending, "_MAX_BYTES", 1 << 30)
    monkeypatch.setattr(pending, "_MAX_WAIT_NS", 0)
    assert add(PendingSteps(Layout(0, 0))).is_due


@pytest.mark.parametrize(("forward_ns", "is_due"), [(10**9 - 1, False), (10**9, True)])
def test_a_slow_step_does_not_wait_for_the_next(
    monkeypatch: pytest.MonkeyPatch, forward_ns: int, is_due: bool
) -> None:
    # The clock stands still: only the step's own time counts.
    monkeypatch.setattr(pending, "_MAX_WAIT_NS", 10**9)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 1)
    steps = PendingSteps(Layout(0, 0))
    scores = torch.randn(1, 777)
    steps.add(make_meter([scores]), torch.tensor([3]), [], StepTiming(forward_ns=forward_ns))
    assert steps.is_due is is_due


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_odd_scores_warn_nobody(value: float) -> None:
    # The service may make numpy's warnings errors.
    steps = PendingSteps(Layout(NUM_CANDIDATES, 1))
    scores = torch.randn(2, 777)
    changed = scores.clone()
    changed[0] = value
    with np.errstate(all="raise"):
        steps.add(make_meter([scores, changed]), torch.tensor([3, 7]), [], StepTiming())
        ((table, _),) = steps.take()
    assert table[1, 0] == 7


@pytest.mark.parametrize("num_tokens", [9, 777, 20_011])
@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_odd_scores_have_the_numbers_that_torch_gives_them(num_tokens: int, value: float) -> None:
    """The oracle is the measurement on a device, which torch's CPU can do as well."""
    torch.manual_seed(4)
    scores = torch.randn(2, num_tokens) * 4
    scores[0, 5] = value
    scores[1, 2:7] = value
    chosen = torch.tensor([3, 3])
    (on_host,) = make_meter([scores]).measure(chosen)
    meter = make_meter([scores])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StepMeter, "is_on_host", False)
        on_device = torch.cat(meter.measure(chosen), -1)
    fixed = slice(0, 6)
    assert on_host[:, fixed].numpy() == pytest.approx(
        on_device[:, fixed].numpy(), rel=1e-6, abs=2e-5, nan_ok=True
    )
    for row in range(2):
        listed, expected = (
            scores[row, table[row, 6 : 6 + NUM_CANDIDATES].long()] for table in (on_host, on_device)
        )
        assert torch.equal(listed.nan_to_num(99), expected.nan_to_num(99))


class Outbox:
    """A recorder that counts what it is given, and calls a function meanwhile."""

    def __init__(self, on_submit: Callable[[], None] = lambda: None) -> None:
        self.num_submitted = 0
        self._on_submit = on_submit

    def submit(self, _make: Any, _num_bytes: int) -> bool:
        self.num_submitted += 1
        self._on_submit()
        return True


def make_call(outbox: Outbox) -> RecordedCall:
    destination: Any = SimpleNamespace(recorder=outbox, num_candidates=NUM_CANDIDATES)
    call = RecordedCall(destination)
    call._batch_number, call._can_wait = 1, True
    call._layout = Layout(NUM_CANDIDATES, 0)
    call._pending = PendingSteps(call._layout)
    call._last_ns = time.monotonic_ns()
    return call


def choose_one(call: RecordedCall) -> None:
    call.note_chosen(torch.tensor([[1, 2]]), [torch.tensor([False])])


def test_a_flush_between_two_notes_of_a_step_leaves_its_times_positive() -> None:
    outbox = Outbox()
    call = make_call(outbox)
    call.note_logits(torch.randn(1, 777))
    choose_one(call)
    call.note_logits(torch.randn(1, 777))
    call.submit_pending()  # as another thread's flush does
    assert outbox.num_submitted == 1
    choose_one(call)
    (step,) = call._pending._steps
    assert step.timing.forward_ns >= 0
    assert step.timing.select_ns >= 0


def test_a_flush_in_a_signal_handler_does_not_wait_for_its_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_module, "_LONGEST_WAIT_S", 0.05)
    calls: list[RecordedCall] = []

    def handle_signal() -> None:
        calls[0].submit_pending()

    outbox = Outbox(handle_signal)
    call = make_call(outbox)
    calls.append(call)
    call.note_logits(torch.randn(1, 777))
    choose_one(call)
    flushing = threading.Thread(target=call.submit_pending, daemon=True)
    flushing.start()
    flushing.join(60)
    assert not flushing.is_alive()
    assert outbox.num_submitted == 1
    assert call.is_active
