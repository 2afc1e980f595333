"""Failures of a probe, which end only the probed generations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import BeamHarness, beams, greedy, loaded_model, prompt_of, sampled

from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.engine import StopGeneration
from whence_server.engines.transformers.internals import probe
from whence_server.engines.transformers.internals.lens import Lens
from whence_server.engines.transformers.internals.probe import ActivationBuffer
from whence_server.engines.transformers.internals.probed_rows import ProbedPrompt, ProbedRows
from whence_server.engines.transformers.internals.probed_sequence import ProbedSequence
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.solo import SoloRunner
from whence_server.engines.transformers.step_graph import StepGraph

INTERNALS = TraceOptions(TraceDetail.INTERNALS)
Models = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def models(tiny_model: Callable[..., Path]) -> Models:
    loaded: dict[str, LoadedModel] = {}

    def get(way: str) -> LoadedModel:
        if way not in loaded:
            architecture, _, modules = way.partition(" ")
            model = loaded_model(tiny_model(architecture), findings_cache="")
            loaded[way] = model._replace(graph=None) if modules else model
        return loaded[way]

    return get


def five(loaded: LoadedModel) -> BeamHarness:
    """Return a harness in which three unprobed and two probed generations are running."""
    harness = BeamHarness(loaded)
    harness.admit("plain", prompt_of(20, seed=1), sampled(12, ignore_eos=True))
    harness.admit("asks", prompt_of(9, seed=2), sampled(12, ignore_eos=True), INTERNALS)
    harness.admit("beams", prompt_of(12, seed=3), beams(12, 3, ignore_eos=True), INTERNALS)
    harness.admit("plain beams", prompt_of(7, seed=4), beams(12, 2, ignore_eos=True))
    harness.admit("last", prompt_of(5, seed=5), greedy(12, ignore_eos=True))
    for _ in range(3):
        harness.loop.run_turn()
    return harness


@pytest.fixture(scope="module")
def undisturbed(models: Models) -> Callable[[str], BeamHarness]:
    done: dict[str, BeamHarness] = {}

    def get(way: str) -> BeamHarness:
        if way not in done:
            done[way] = five(models(way))
            done[way].run()
            assert not done[way].failed
        return done[way]

    return get


def check(got: BeamHarness, expected: BeamHarness, failed: set[str]) -> None:
    """Check that only `failed` failed, with a probe error, and that a new generation runs."""
    assert got.failed.keys() == failed
    for failure in got.failed.values():
        assert failure.reason == "OBSERVING_FAILED"
        assert "ZeroDivisionError" in failure.message
    for name in {"plain", "asks", "last"} - failed:
        assert got.ids(name) == expected.ids(name)
        # In a smaller batch, kernels round otherwise.
        assert [step.decision.logprob for step in got.steps[name, 0]] == pytest.approx(
            [step.decision.logprob for step in expected.steps[name, 0]], abs=1e-5
        )
    for name in {"beams", "plain beams"} - failed:
        assert got.winners(name) == expected.winners(name)
        assert got.scores(name) == pytest.approx(expected.scores(name), abs=1e-5)
    got.admit("next", prompt_of(9, seed=2), sampled(12, ignore_eos=True), INTERNALS)
    got.run()
    assert got.ids("next") == expected.ids("asks")
    assert all(step.decision.internals for step in got.steps["next", 0])


def breaks(*_args: object, **_kwargs: object) -> Any:
    raise ZeroDivisionError


def half_way(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the original and then fails."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise ZeroDivisionError

    return broken


def unreadable(
    name: str, read: Callable[..., Any] = breaks
) -> tuple[str, Callable[[ActivationBuffer, object], None]]:
    """Give the buffer activations that cannot be read."""
    add = getattr(ActivationBuffer, name)
    return name, lambda buffer, _read: add(buffer, read)


# Where it breaks: in the pass, in its middle; before and after it. "llama" is a recorded step.
IN_A_STEP = [
    ("llama", Runner, "read_probe", breaks),
    ("llama", ProbedRows, "read_probe", half_way(ProbedRows.read_probe)),
    ("llama", Lens, "read", breaks),
    ("llama", StepGraph, "run_probed", breaks),
    ("llama", StepGraph, "run_probed", half_way(StepGraph.run_probed)),
    ("llama modules", ActivationBuffer, *unreadable("add_attention")),
    ("llama modules", ActivationBuffer, *unreadable("add_output")),
    ("llama modules", probe, "Activations", breaks),
    ("jamba", SoloRunner, "read_probe", breaks),
    ("jamba", ActivationBuffer, *unreadable("add_attention")),
    ("jamba", ActivationBuffer, *unreadable("add_output")),
    ("jamba", ProbedSequence, "read_probe", half_way(ProbedSequence.read_probe)),
    ("mamba", Lens, "read", breaks),
    ("mamba", ActivationBuffer, *unreadable("add_output")),
]


@pytest.mark.parametrize(("way", "where", "name", "broken"), IN_A_STEP)
def test_probe_failure_in_a_step_ends_only_the_probed_generations(
    models: Models,
    undisturbed: Callable[[str], BeamHarness],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    where: Any,
    name: str,
    broken: Callable[..., Any],
) -> None:
    got = five(models(way))
    with monkeypatch.context() as patched:
        patched.setattr(where, name, broken)
        got.loop.run_turn()
    got.run()
    check(got, undisturbed(way), {"asks", "beams"})


EVERYONE = {"asks", "beams", "late"}
AT_A_PROMPT = [
    ("llama", ProbedPrompt, "read", breaks, {"late"}),
    ("llama", ProbedPrompt, "read_probe", breaks, {"late"}),
    # What has been kept of all rows cannot be trusted any more.
    ("llama", ProbedRows, "join", breaks, EVERYONE),
    ("llama", ProbedRows, "join", half_way(ProbedRows.join), EVERYONE),
    # The step before it meets the same.
    ("llama", Lens, "read", breaks, EVERYONE),
    ("jamba", ProbedSequence, "read_probe", breaks, EVERYONE),
]


@pytest.mark.parametrize(("way", "where", "name", "broken", "failed"), AT_A_PROMPT)
def test_probe_failure_in_prefill_ends_no_unprobed_generation(
    models: Models,
    undisturbed: Callable[[str], BeamHarness],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    where: Any,
    name: str,
    broken: Callable[..., Any],
    failed: set[str],
) -> None:
    got = five(models(way))
    got.admit("late", prompt_of(6, seed=6), greedy(5, ignore_eos=True), INTERNALS)
    with monkeypatch.context() as patched:
        patched.setattr(where, name, broken)
        got.loop.run_turn()
    got.run()
    check(got, undisturbed(way), failed)


@pytest.mark.parametrize("broken", ["leave", "copy_rows"])
def test_failure_to_move_norms_ends_all_probed_generations(
    models: Models,
    undisturbed: Callable[[str], BeamHarness],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    got = five(models("llama"))
    with monkeypatch.context() as patched:
        patched.setattr(ProbedRows, broken, half_way(getattr(ProbedRows, broken)))
        # A row that leaves, and beams that are copied.
        got.loop.handle(StopGeneration("last"))
        for _ in range(3):
            got.loop.run_turn()
    got.run()
    assert len(got.ids("last")) < 12
    got.steps["last", 0] = undisturbed("llama").steps["last", 0]
    check(got, undisturbed("llama"), {"asks", "beams"})


def test_a_probe_failure_does_not_affect_later_generations(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = BeamHarness(models("llama"))
    with monkeypatch.context() as patched:
        patched.setattr(ProbedRows, "leave", breaks)
        harness.admit("first", prompt_of(9, seed=2), greedy(3, ignore_eos=True), INTERNALS)
        harness.run()
    harness.admit("second", prompt_of(9, seed=2), greedy(3, ignore_eos=True), INTERNALS)
    harness.run()
    assert not harness.failed
    assert harness.ids("second") == harness.ids("first")
    assert all(step.decision.internals for step in harness.steps["second", 0])


def test_a_failed_forward_pass_ends_all_generations(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = five(models("llama modules"))
    with monkeypatch.context() as patched:
        patched.setattr(got.model.model.layers[0].mlp, "forward", breaks)
        got.loop.run_turn()
    assert {failure.reason for failure in got.failed.values()} == {"FORWARD_FAILED"}
    assert got.failed.keys() == {"plain", "asks", "beams", "plain beams", "last"}


def test_a_probe_out_of_memory_is_reported_as_out_of_memory(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_args: object) -> None:
        raise torch.OutOfMemoryError

    got = five(models("llama modules"))
    with monkeypatch.context() as patched:
        patched.setattr(ActivationBuffer, *unreadable("add_output", exhausted))
        got.loop.run_turn()
    assert got.failed.keys() == {"asks", "beams"}
    assert {failure.reason for failure in got.failed.values()} == {"OUT_OF_MEMORY"}
    got.admit("late", prompt_of(6, seed=6), greedy(5, ignore_eos=True), INTERNALS)
    with monkeypatch.context() as patched:
        patched.setattr(ProbedPrompt, "read", exhausted)
        got.loop.run_turn()
    assert got.failed["late"].reason == "OUT_OF_MEMORY"
