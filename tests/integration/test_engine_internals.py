"""Recorded internals, compared with transformers' eager attention and with its layers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import (
    BeamHarness,
    Harness,
    beams,
    greedy,
    loaded_model,
    prompt_of,
    sampled,
)
from internals_oracle import (
    PROJECTIONS,
    attending,
    eager_model,
    layer_logits,
    shares,
)
from tiny_models import ARCHITECTURES, CONFIGS, HYBRIDS, LAST_STAGES, NO_SOURCES
from torch.nn.functional import pad

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.engine import Admit, Replay
from whence_server.domain.steps import Decision, Internals
from whence_server.engines.transformers.internals import probed_rows, probed_sequence, sources
from whence_server.engines.transformers.loading import LoadedModel

INTERNALS = TraceOptions(TraceDetail.INTERNALS)
METHOD = "value-norm-attention/2"
EVERY = ARCHITECTURES + LAST_STAGES + HYBRIDS
GIVES_SOURCES = [name for name in EVERY if name not in NO_SOURCES]

Models = Callable[[str], LoadedModel]


def internals_of(decision: Decision) -> Internals:
    assert decision.internals is not None
    return decision.internals


def check_sources(seen: Internals, expected: torch.Tensor) -> None:
    """Compare listed sources with the shares [T] of a step's context.

    Random weights make no sinks: no position's values are much shorter than the others'.
    """
    assert seen.sink_share is None
    assert seen.self_share == pytest.approx(float(expected[-1]), abs=2e-5)
    others = expected[:-1]
    assert len(seen.source_positions) == min(16, int((others > 0).sum()))
    assert len(set(seen.source_positions)) == len(seen.source_positions)
    listed = torch.tensor(seen.source_shares, dtype=torch.float64)
    torch.testing.assert_close(others[seen.source_positions], listed, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        others.topk(len(listed)).values, listed, rtol=0, atol=2e-5, msg="the strongest come first"
    )


def check_all_sources(
    architecture: str, directory: Path, prompt: list[int], decisions: list[Decision]
) -> None:
    ids = [decision.token_id for decision in decisions]
    expected = shares(architecture, eager_model(directory), [*prompt, *ids])
    for i, decision in enumerate(decisions):
        length = len(prompt) + i
        check_sources(internals_of(decision), expected[length - 1, :length])


@pytest.mark.parametrize("architecture", EVERY)
def test_every_architecture_reports_its_internals(models: Models, architecture: str) -> None:
    info = models(architecture).info.internals
    gives = architecture in GIVES_SOURCES
    assert info.source_method == (METHOD if gives else "")
    assert set(info.unavailable) == (set() if gives else {"sources"})
    assert all(info.unavailable.values())


@pytest.mark.parametrize("architecture", GIVES_SOURCES)
def test_sources_equal_eager_attention_while_rows_come_and_go(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    # Past the windows, which are 16 wide, in pieces, beside others that are longer and shorter,
    # and do or do not ask.
    harness = Harness(models(architecture), chunk=16)
    given = {str(i): prompt_of(length, seed=i) for i, length in enumerate((3, 50, 1, 21, 34, 70))}
    for number, (name, prompt) in enumerate(given.items()):
        trace = INTERNALS if number % 3 else TraceOptions()
        decoding = sampled(6 + 5 * number, ignore_eos=True, seed=number)
        harness.admit(name, prompt, decoding, trace)
        for _ in range(4):
            harness.loop.run_turn()
    harness.run()
    for number, (name, prompt) in enumerate(given.items()):
        decisions = [step.decision for step in harness.steps[name, 0]]
        if number % 3:
            check_all_sources(architecture, tiny_model(architecture), prompt, decisions)
        else:
            assert not any(decision.internals for decision in decisions)


@pytest.mark.parametrize("architecture", GIVES_SOURCES)
def test_newest_weights_are_eager_attention_s_output_attentions_at_every_step(
    models: Models,
    tiny_model: Callable[..., Path],
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # From the prompt's end on, read in pieces where it can be, and then together past the window.
    seen: list[list[torch.Tensor]] = []
    original = sources.read_context

    def spied(weights: list[torch.Tensor], *others: object) -> sources.Reading:
        seen.extend([layer.clone() for layer in rows] for rows in zip(*weights, strict=True))
        return original(weights, *others)

    harness = Harness(models(architecture), chunk=16)
    for module in (probed_rows, probed_sequence):
        monkeypatch.setattr(module, "read_context", spied)
    prompts = {"short": prompt_of(9, seed=1), "long": prompt_of(40, seed=2)}
    for name, prompt in prompts.items():
        harness.admit(name, prompt, greedy(20, ignore_eos=True), INTERNALS)
    harness.run()
    model = eager_model(tiny_model(architecture))
    expected = {
        name: attending(model, [*prompt, *harness.ids(name)]) for name, prompt in prompts.items()
    }
    steps = [step for turn in harness.turns for step in turn.steps]
    assert len(steps) == 40
    for step, weights in zip(steps, seen, strict=True):
        newest = len(prompts[step.generation_id]) + step.index - 1
        for ours, of_layer in zip(weights, expected[step.generation_id], strict=True):
            theirs = of_layer.weights[:, newest, : newest + 1]
            # Padded on the left, or without what is out of the layer's sight.
            width = max(ours.shape[-1], newest + 1)
            one, other = (pad(each, (width - each.shape[-1], 0)) for each in (ours, theirs))
            torch.testing.assert_close(one.cpu().double(), other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", GIVES_SOURCES)
def test_the_winners_of_a_beam_search_carry_their_own_sources(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    harness = BeamHarness(models(architecture), chunk=16)
    harness.admit("other", prompt_of(45, seed=3), greedy(20, ignore_eos=True), INTERNALS)
    harness.loop.run_turn()
    prompt = prompt_of(20, seed=4)
    harness.admit("it", prompt, beams(12, 4, num_return_sequences=3, ignore_eos=True), INTERNALS)
    harness.run()
    assert len(harness.winners("it")) == 3
    for sequence in harness.done["it"].sequences:
        decisions = [step.decision for step in sequence.steps]
        check_all_sources(architecture, tiny_model(architecture), prompt, decisions)


@pytest.mark.parametrize("architecture", EVERY)
def test_layer_readouts_equal_the_model_without_its_later_layers(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    harness = Harness(models(architecture), chunk=16)
    prompt = prompt_of(30, seed=5)
    harness.admit("other", prompt_of(7, seed=6), greedy(9, ignore_eos=True))
    harness.admit("it", prompt, sampled(8, ignore_eos=True, temperature=3.0), INTERNALS)
    harness.admit("few", prompt, greedy(8, ignore_eos=True), TraceOptions(INTERNALS.detail, 2))
    harness.run()
    model = eager_model(tiny_model(architecture))
    unlisted = 0
    for name in ("it", "few"):
        ids = harness.ids(name)
        logits = layer_logits(architecture, model, [*prompt, *ids])
        for i, step in enumerate(harness.steps[name, 0]):
            decision = step.decision
            assert decision.candidates is not None
            table = list(decision.candidates.token_ids)
            if decision.token_id not in table:
                unlisted += 1
                table.append(decision.token_id)
            at_layers = logits[:, len(prompt) + i - 1, table]  # (layers, n)
            seen = internals_of(decision)
            expected = torch.softmax(at_layers, -1)[:, table.index(decision.token_id)]
            torch.testing.assert_close(torch.tensor(seen.layer_shares), expected, rtol=0, atol=2e-3)
            for layer, leader in enumerate(seen.layer_leaders):
                scores = at_layers[layer]
                assert float(scores.max() - scores[leader]) <= 2e-3 * float(scores.abs().max())
    assert unlisted, "a temperature of 3 should have drawn what is no candidate"


def list_ways(loaded: LoadedModel) -> list[LoadedModel]:
    """Return a model with its captured step, if it has one, and through its modules."""
    through_modules = loaded._replace(graph=None)
    return [through_modules] if loaded.graph is None else [loaded, through_modules]


@pytest.mark.parametrize("architecture", EVERY)
def test_probing_changes_no_bit(models: Models, architecture: str) -> None:
    def run(details: tuple[TraceDetail, ...], loaded: LoadedModel) -> list[list[Decision]]:
        harness = Harness(loaded, chunk=16)
        for number, detail in enumerate(details):
            decoding = sampled(14, ignore_eos=True, seed=number)
            harness.admit(
                str(number), prompt_of(40 - 15 * number, number), decoding, TraceOptions(detail)
            )
            harness.loop.run_turn()
        harness.run()
        return [
            [step.decision._replace(internals=None) for step in harness.steps[str(number), 0]]
            for number in range(len(details))
        ]

    loaded = models(architecture)
    plain, internals = TraceDetail.DECISIONS, TraceDetail.INTERNALS
    for way in list_ways(loaded):
        assert run((internals,), way) == run((plain,), way)
        together = run((plain, plain, plain), way)
        assert run((plain, internals, plain), way) == together
        assert run((internals, internals, internals), way) == together


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "architecture", ["gpt2", "llama", "gemma2", "mistral", "mamba", "jamba", "llama4"]
)
def test_probing_changes_no_bit_of_a_beam_search_and_in_half_precision(
    tiny_model: Callable[..., Path], architecture: str, dtype: str
) -> None:
    loaded = loaded_model(tiny_model(architecture), dtype=dtype)

    def run(details: tuple[TraceDetail, ...], loaded: LoadedModel) -> list[object]:
        harness = BeamHarness(loaded, chunk=16)
        decodings = (sampled(14, ignore_eos=True), beams(10, 3, ignore_eos=True))
        for number, detail in enumerate(details):
            harness.admit(
                str(number),
                prompt_of(40 - 9 * number, number),
                decodings[number % 2],
                TraceOptions(detail),
            )
            harness.loop.run_turn()
        harness.run()
        assert not harness.failed
        return [
            [step.decision._replace(internals=None) for step in steps]
            for number in range(len(details))
            for steps in (
                [sequence.steps for sequence in harness.done[str(number)].sequences]
                if number % 2
                else [harness.steps[str(number), 0]]
            )
        ] + [
            (continuation.token_id, continuation.logprob)
            for number in range(1, len(details), 2)
            for made in harness.rounds[str(number)]
            for continuation in made.continuations
        ]

    plain, internals = TraceDetail.DECISIONS, TraceDetail.INTERNALS
    for way in list_ways(loaded):
        expected = run((plain,) * 4, way)
        for details in (
            (internals,) * 4,
            (plain, internals) * 2,
            (internals, plain, plain, internals),
        ):
            assert run(details, way) == expected


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "mamba", "jamba"])
def test_continued_sequences_have_the_same_internals(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    prompt = prompt_of(20, seed=14)
    decoding = sampled(14, num_return_sequences=2, ignore_eos=True)
    undisturbed = Harness(models(architecture), chunk=16)
    undisturbed.admit("it", prompt, decoding, INTERNALS)
    undisturbed.run()
    again = Harness(models(architecture), chunk=16)
    recorded = []
    for index, count in enumerate((9, 3)):
        again.steps["it", index] = undisturbed.steps["it", index][:count]
        recorded.append(Replay(index, undisturbed.ids("it", index)[:count]))
    again.loop.handle(Admit("it", prompt, decoding, INTERNALS, recorded))
    again.run()
    for index, count in enumerate((9, 3)):
        assert again.ids("it", index) == undisturbed.ids("it", index)
        ours, expected = (
            [step.decision for step in harness.steps["it", index]]
            for harness in (again, undisturbed)
        )
        if architecture in GIVES_SOURCES:
            check_all_sources(architecture, tiny_model(architecture), prompt, ours)
        for one, other in zip(ours[count:], expected[count:], strict=True):
            assert internals_of(one).layer_shares == pytest.approx(
                internals_of(other).layer_shares, abs=2e-3
            )


def test_a_forced_continuation_has_internals(
    models: Models, tiny_model: Callable[..., Path]
) -> None:
    harness = Harness(models("llama"))
    prompt, forced = prompt_of(12, seed=7), prompt_of(10, seed=8)
    decoding = Decoding(
        Strategy.FORCED, len(forced), forced_token_ids=tuple(forced), ignore_eos=True
    )
    harness.admit("it", prompt, decoding, INTERNALS)
    harness.run()
    decisions = [step.decision for step in harness.steps["it", 0]]
    assert [decision.token_id for decision in decisions] == forced
    check_all_sources("llama", tiny_model("llama"), prompt, decisions)


@pytest.mark.parametrize("architecture", ["mistral", "llama4"])
def test_sequences_of_one_prompt_have_their_own_internals(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    harness = Harness(models(architecture))
    prompt = prompt_of(20, seed=9)
    decoding = sampled(12, num_return_sequences=3, ignore_eos=True)
    harness.admit("it", prompt, decoding, INTERNALS)
    harness.run()
    for index in range(3):
        decisions = [step.decision for step in harness.steps["it", index]]
        check_all_sources(architecture, tiny_model(architecture), prompt, decisions)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_other_weights_have_other_sources(
    models: Models, tiny_model: Callable[..., Path], architecture: str
) -> None:
    # Adebayo et al., "Sanity Checks for Saliency Maps", 2018: an explanation that survives
    # random weights explains the input, not the model.
    found = []
    forced = prompt_of(10, seed=10)
    for loaded in (models(architecture), loaded_model(tiny_model(architecture, seed=1))):
        harness = Harness(loaded)
        decoding = Decoding(Strategy.FORCED, len(forced), forced_token_ids=tuple(forced))
        harness.admit("it", prompt_of(40, seed=11), decoding, INTERNALS)
        harness.run()
        found.append([internals_of(step.decision) for step in harness.steps["it", 0]])
    overlaps = [
        len(set(one.source_positions) & set(other.source_positions)) / 16
        for one, other in zip(*found, strict=True)
    ]
    # Chance alone makes 16 of about 45 positions agree in a third.
    assert sum(overlaps) / len(overlaps) < 0.6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mistral", "bamba", "llama4"])
def test_half_precision_gives_similar_internals(
    models: Models, tiny_model: Callable[..., Path], architecture: str, dtype: str
) -> None:
    harness = Harness(loaded_model(tiny_model(architecture), dtype=dtype))
    prompt, forced = prompt_of(20, seed=12), prompt_of(6, seed=13)
    decoding = Decoding(Strategy.FORCED, len(forced), forced_token_ids=tuple(forced))
    harness.admit("it", prompt, decoding, INTERNALS)
    harness.run()
    expected = shares(architecture, eager_model(tiny_model(architecture)), [*prompt, *forced])
    for i, step in enumerate(harness.steps["it", 0]):
        seen = internals_of(step.decision)
        of_step = expected[len(prompt) + i - 1]
        listed = torch.tensor(seen.source_shares, dtype=torch.float64)
        torch.testing.assert_close(of_step[seen.source_positions], listed, rtol=0, atol=3e-3)
        strongest = of_step[:-1].topk(16).indices.tolist()
        assert len(set(strongest) & set(seen.source_positions)) >= 14
        assert len(seen.layer_shares) == CONFIGS[architecture].num_hidden_layers


def test_a_prompt_of_one_token_has_only_a_self_share(models: Models) -> None:
    harness = Harness(models("gpt2"))
    harness.admit("it", [7], greedy(2, ignore_eos=True), INTERNALS)
    harness.run()
    first, second = (internals_of(step.decision) for step in harness.steps["it", 0])
    assert (first.source_positions, first.source_shares) == ([], [])
    assert first.self_share == pytest.approx(1.0)
    assert second.source_positions == [0]
    assert sum(second.source_shares) + (second.self_share or 0) == pytest.approx(1.0)


def test_every_architecture_with_sources_is_tested() -> None:
    assert set(PROJECTIONS) == set(GIVES_SOURCES)
