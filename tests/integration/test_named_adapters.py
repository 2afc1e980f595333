"""Adapters that requests choose: tokens against PEFT's own `generate`, alone and among others."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from adapter_models import KINDS, generate_by_peft, lora, save_adapter, save_merged
from engine_harness import (
    BeamHarness,
    Harness,
    beams,
    greedy,
    loaded_model,
    prompt_of,
    sampled,
)
from safetensors.torch import load_file

from whence_server.domain.decoding import Decoding, TraceDetail, TraceOptions
from whence_server.domain.engine import Admit, Replay
from whence_server.domain.model import StepKernels
from whence_server.engines.transformers.digests import (
    digest_files,
    digest_model_files,
    digest_weights,
)
from whence_server.engines.transformers.loading import LoadedModel
from whence_server.engines.transformers.step_graph import StepGraph

CHOSEN = {
    "attention": lora,
    "biased": KINDS["lora with biases"],
    "dense": lambda: lora(target_modules="all-linear", r=8),
    "saved": KINDS["modules_to_save"],
    "scaled": KINDS["ia3"],
}
"""Adapters of different kinds, which are served on one base at once."""
NAMES = ["", *CHOSEN]
PROMPTS = {name: prompt_of(9 + 3 * i, seed=i) for i, name in enumerate(NAMES)}
INTERNALS = TraceOptions(TraceDetail.INTERNALS)


@pytest.fixture(scope="module")
def base(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def places(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(base, directory / name, make()) for name, make in CHOSEN.items()}


@pytest.fixture(scope="module")
def loaded(base: Path, places: dict[str, Path]) -> LoadedModel:
    return loaded_model(base, adapters=tuple((name, str(path)) for name, path in places.items()))


def run(
    loaded: LoadedModel,
    chosen: dict[str, tuple[str, Decoding]],
    trace: TraceOptions | None = None,
    *,
    chunk: int = 16,
) -> BeamHarness:
    """Run requests together: adapter and decoding of each, by id."""
    harness = BeamHarness(loaded, chunk=chunk)
    for generation_id, (adapter, decoding) in chosen.items():
        harness.admit(generation_id, PROMPTS[adapter], decoding, trace, adapter)
    harness.run()
    assert not harness.failed
    return harness


def test_greedy_ids_are_those_of_peft_among_rows_of_other_adapters(
    base: Path, places: dict[str, Path], loaded: LoadedModel
) -> None:
    harness = BeamHarness(loaded, chunk=16)
    for i, name in enumerate(NAMES):
        # Two rows of each, of other lengths, so that rows leave at different times.
        harness.admit(f"{name} 1", PROMPTS[name], greedy(8 + i, ignore_eos=True), adapter=name)
        harness.admit(
            f"{name} 2", prompt_of(20 - i, i), greedy(12 - i, ignore_eos=True), None, name
        )
    harness.run()
    outputs = set()
    for i, name in enumerate(NAMES):
        place = places.get(name)
        [first] = generate_by_peft(base, place, PROMPTS[name], 8 + i)
        [second] = generate_by_peft(base, place, prompt_of(20 - i, i), 12 - i)
        assert harness.ids(f"{name} 1") == first, name
        assert harness.ids(f"{name} 2") == second, name
        [same_prompt] = generate_by_peft(base, place, PROMPTS[""], 8)
        outputs.add(tuple(same_prompt))
    assert len(outputs) == len(NAMES), "every adapter changes the output"


def test_a_cached_prefix_is_reused_with_the_same_adapter_alone(
    base: Path, places: dict[str, Path], loaded: LoadedModel
) -> None:
    info = dataclasses.replace(loaded.info, prefix_cache_tokens=4096)
    harness, prompt = BeamHarness(loaded._replace(info=info)), prompt_of(40, seed=30)
    for round_ in range(2):
        for name in NAMES:
            harness.admit(f"{name} {round_}", prompt, greedy(8, ignore_eos=True), None, name)
        harness.run()
    cached = {p.generation_id: p.num_cached_tokens for t in harness.turns for p in t.prefilled}
    for name in NAMES:
        [expected] = generate_by_peft(base, places.get(name), prompt, 8)
        for round_ in range(2):
            assert harness.ids(f"{name} {round_}") == expected, name
            assert cached[f"{name} {round_}"] == 32 * round_


def test_lora_adapters_share_a_captured_pass_and_others_have_their_own(
    loaded: LoadedModel,
) -> None:
    assert loaded.mixed is not None
    assert set(loaded.mixed.ways) == {"", "attention", "dense"}
    assert loaded.mixed.mixed.graph is not None
    assert loaded.graph is not None
    assert all(each.graph is not None for each in loaded.adapted)


def test_kernels_on_record_are_those_of_each_captured_step(
    base: Path, places: dict[str, Path]
) -> None:
    loaded = loaded_model(
        base, adapters=(("dense", str(places["dense"])),), step_kernels=StepKernels.PACKED
    )
    [adapted] = loaded.adapted
    assert loaded.graph is not None
    assert adapted.graph is not None
    assert (loaded.graph.packed, loaded.info.environment.step_kernels) == (True, "packed")
    assert (adapted.graph.packed, loaded.info.adapters[0].step_kernels) == (False, "")
    # Internals are read from the same steps, unless their step could not be captured.
    assert (loaded.graph.has_probe, loaded.info.internals.step_kernels) == (True, "packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepGraph, "has_probe", False)
        others = loaded_model(base, step_kernels=StepKernels.PACKED)
    assert others.info.environment.step_kernels == "packed"
    assert others.info.internals.step_kernels == ""


def test_a_row_is_what_it_is_without_rows_of_other_adapters(loaded: LoadedModel) -> None:
    chosen = {name or "none": (name, sampled(10, ignore_eos=True, seed=5)) for name in NAMES}
    # Prompts are read in one chunk each: how a prompt is cut changes its numbers' last bits.
    together = run(loaded, chosen, INTERNALS, chunk=512)
    for generation_id, request in chosen.items():
        alone = run(loaded, {generation_id: request}, INTERNALS, chunk=512)
        ours, theirs = (
            [step.decision for step in harness.steps[generation_id, 0]]
            for harness in (together, alone)
        )
        assert [one.token_id for one in ours] == [one.token_id for one in theirs], generation_id
        if request[0] in {"saved", "scaled", "biased"}:  # in a pass of their own
            assert ours == theirs
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert one.internals is not None
            assert other.internals is not None
            assert one.internals.self_share == pytest.approx(other.internals.self_share, abs=1e-4)
            assert one.internals.layer_shares == pytest.approx(
                other.internals.layer_shares, abs=1e-3
            )


def test_internals_change_no_bit_of_rows_with_several_adapters(loaded: LoadedModel) -> None:
    chosen = {name or "none": (name, greedy(9, ignore_eos=True)) for name in NAMES}
    plain, seen = (run(loaded, chosen, trace, chunk=512) for trace in (None, INTERNALS))
    for generation_id in chosen:
        assert [step.decision for step in plain.steps[generation_id, 0]] == [
            step.decision._replace(internals=None) for step in seen.steps[generation_id, 0]
        ]


def test_beams_and_samples_of_several_adapters_run_in_one_batch(
    base: Path, places: dict[str, Path], loaded: LoadedModel
) -> None:
    search = beams(10, num_beams=3, num_return_sequences=2, ignore_eos=True)
    drawn = sampled(10, num_return_sequences=3, ignore_eos=True, seed=11)
    chosen = {"search": ("dense", search), "other": ("attention", search)}
    harness = run(loaded, {**chosen, "drawn": ("saved", drawn)})
    for generation_id, (name, _) in chosen.items():
        expected = generate_by_peft(
            base, places[name], PROMPTS[name], 10, num_beams=3, num_return_sequences=2
        )
        assert harness.winners(generation_id) == expected
    # A server of this adapter alone draws the same tokens.
    alone = Harness(loaded_model(places["saved"]), chunk=16)
    alone.admit("drawn", PROMPTS["saved"], drawn)
    alone.run()
    for sequence in range(3):
        assert harness.ids("drawn", sequence) == alone.ids("drawn", sequence)


@pytest.mark.parametrize("name", ["attention", "dense"])
def test_internals_are_those_of_the_model_that_the_adapter_is_merged_into(
    base: Path, places: dict[str, Path], loaded: LoadedModel, tmp_path: Path, name: str
) -> None:
    merged = Harness(loaded_model(save_merged(base, places[name], tmp_path / "merged")), chunk=16)
    merged.admit("it", PROMPTS[name], greedy(8, ignore_eos=True), INTERNALS)
    merged.run()
    among = {"it": (name, greedy(8, ignore_eos=True)), "base": ("", greedy(8, ignore_eos=True))}
    harness = run(loaded, among, INTERNALS)
    assert harness.ids("it") == merged.ids("it")
    pairs = zip(harness.steps["it", 0], merged.steps["it", 0], strict=True)
    for ours, theirs in ((one.decision.internals, two.decision.internals) for one, two in pairs):
        assert ours is not None
        assert theirs is not None
        assert dict(zip(ours.source_positions, ours.source_shares, strict=True)) == pytest.approx(
            dict(zip(theirs.source_positions, theirs.source_shares, strict=True)), abs=1e-4
        )
        assert ours.source_positions
        assert ours.layer_shares == pytest.approx(theirs.layer_shares, abs=1e-3)
        assert ours.layer_shares


def test_a_generation_continues_with_its_adapter_in_another_engine(loaded: LoadedModel) -> None:
    decoding = sampled(12, ignore_eos=True, seed=3)
    undisturbed = run(loaded, {"it": ("dense", decoding)}).ids("it")
    again = BeamHarness(loaded, chunk=16)
    again.steps["it", 0] = run(loaded, {"it": ("dense", decoding)}).steps["it", 0][:5]
    replays = [Replay(0, undisturbed[:5])]
    again.loop.handle(
        Admit("it", PROMPTS["dense"], decoding, TraceOptions(), replays, adapter="dense")
    )
    again.run()
    assert again.ids("it") == undisturbed


def test_digests_are_those_of_the_base_and_of_each_adapters_files(
    base: Path, places: dict[str, Path], loaded: LoadedModel
) -> None:
    alone = loaded_model(base).info
    info = loaded.info
    assert (info.model_digest, info.weights_digest) == (alone.model_digest, alone.weights_digest)
    assert info.adapter is None
    assert [adapter.name for adapter in info.adapters] == sorted(CHOSEN)
    for adapter in info.adapters:
        directory = places[adapter.name]
        files = digest_files(directory, ["adapter_config.json", "adapter_model.safetensors"])
        saved = load_file(directory / "adapter_model.safetensors")
        assert adapter.files == tuple(files)
        assert adapter.identity.digest == digest_model_files(files)
        assert adapter.identity.base_model_digest == alone.model_digest
        assert adapter.identity.base == str(base)
        assert adapter.weights_digest == digest_weights(saved)
        assert adapter.directory == str(directory.resolve())
    kinds = {adapter.name: adapter.identity.peft_type for adapter in info.adapters}
    assert (kinds["dense"], kinds["scaled"]) == ("LORA", "IA3")


@pytest.mark.parametrize("architecture", ["mamba", "gpt2", "qwen2", "qwen2_moe"])
def test_other_architectures_serve_adapters_too(
    tiny_model: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    base = tiny_model(architecture)
    # The biases of qwen2 are the base's own, and the adapter has other values for them.
    config = {
        "mamba": {"target_modules": ["in_proj", "x_proj"]},
        "gpt2": {"target_modules": ["c_attn"]},
        "qwen2": {"bias": "lora_only"},
        # Its experts read the tokens of all rows in one list.
        "qwen2_moe": {"target_modules": ["q_proj", "shared_expert_gate"]},
    }[architecture]
    place = save_adapter(base, tmp_path / "adapter", lora(**config))
    loaded = loaded_model(base, adapters=(("one", str(place)),))
    assert loaded.info.batched == (architecture != "mamba")
    assert (loaded.mixed is not None) == (architecture == "gpt2")
    harness = Harness(loaded, chunk=16)
    for name in ("", "one"):
        harness.admit(name or "none", PROMPTS[""], greedy(10, ignore_eos=True), adapter=name)
    harness.run()
    [without] = generate_by_peft(base, None, PROMPTS[""], 10)
    [adapted] = generate_by_peft(base, place, PROMPTS[""], 10)
    assert without != adapted
    assert harness.ids("none") == without
    assert harness.ids("one") == adapted
