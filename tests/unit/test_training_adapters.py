"""Adapters on record: digested as they are saved, linked to the model below them, and verified."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import byte_level_tokenizer
from tiny_training import (
    Rows,
    events_in,
    same_bits,
    steps_in,
    tiny_gpt2,
    trainer_of,
    weights_of,
)
from training_runs import sha256
from transformers import GPT2LMHeadModel, Trainer

from whence.v1.training_pb2 import TrainingState
from whence_server.engines.transformers.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.whole import read_run
from whence_server.training import record
from whence_server.training.emergence.trajectory import RefusedError, list_kept_weights
from whence_server.training.verify.findings import Verdict
from whence_server.training.verify.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraConfig(
    task_type="CAUSAL_LM", r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
)
KINDS: dict[str, Any] = {
    "lora": LORA,
    "lora with a module": LoraConfig(
        task_type="CAUSAL_LM", modules_to_save=["ln_f"], fan_in_fan_out=True
    ),
    "ia3": IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["c_attn", "c_fc"],
        feedforward_modules=["c_fc"],
        fan_in_fan_out=True,
    ),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
}
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    tiny_gpt2().save_pretrained(directory)
    return directory


def adapter_on(base: Path, config: Any = LORA) -> Any:
    torch.manual_seed(3)
    return get_peft_model(GPT2LMHeadModel.from_pretrained(base), copy.deepcopy(config))


def trained(directory: Path, base: Path, **arguments: Any) -> Trainer:
    trainer = trainer_of(directory / "run", model=adapter_on(base), **(SAVING | arguments))
    with record(trainer):
        trainer.train()
        trainer.save_model(str(directory / "adapter"))
    return trainer


def checkpoints_in(directory: Path) -> list[Any]:
    return [e.checkpoint for e in events_in(directory) if e.HasField("checkpoint")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_trained_as_without_a_record_and_verifies(
    kind: str, base: Path, tmp_path: Path
) -> None:
    untracked = trainer_of(tmp_path / "u", model=adapter_on(base, KINDS[kind]), **SAVING)
    untracked.train()
    tracked = trainer_of(tmp_path / "run", model=adapter_on(base, KINDS[kind]), **SAVING)
    with record(tracked):
        tracked.train()
        tracked.save_model()
    assert same_bits(weights_of(untracked), weights_of(tracked))
    events = events_in(tmp_path / "run")
    assert events[-1].attempt_finished.state == TrainingState.TRAINING_STATE_COMPLETED
    assert not [e for e in events if e.HasField("gap")]
    started, saved = events[0].started, checkpoints_in(tmp_path / "run")[-1]
    assert started.architecture == "GPT2LMHeadModel"
    # The oracles: the base as transformers loads it, and the files as they lie there.
    digest = digest_weights(GPT2LMHeadModel.from_pretrained(base).state_dict())
    assert started.adapter_base.source == started.parent.source == str(base)
    assert started.adapter_base.weights_digest == saved.base_weights_digest == digest
    files = {f.path: f.sha256 for f in started.adapter_base.files}
    assert files["model.safetensors"] == sha256((base / "model.safetensors").read_bytes())
    state = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert saved.weights_digest == digest_weights(state)
    assert [t.name for t in saved.tensors] == sorted(state)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.path for f in saved.files}
    assert events[-1].attempt_finished.weights_digest == saved.weights_digest
    for where in (".", "checkpoint-2", "checkpoint-4"):
        report = verify(tmp_path / "run" / where)
        assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
        assert report.base.startswith(f"{base} as recorded")
        assert report.num_tensors == len(state)


def test_trained_parameters_are_measured_and_frozen_ones_are_a_group(
    base: Path, tmp_path: Path
) -> None:
    trained(tmp_path, base)
    groups = events_in(tmp_path / "run")[0].started.groups
    names = [group.name for group in groups]
    assert names == [f"layer.{n}.{half}" for n in (0, 1) for half in ("attention", "mlp")] + [
        "frozen"
    ]
    assert all("lora_" in name for group in groups[:-1] for name in group.parameter_names)
    step = steps_in(tmp_path / "run")[-1]
    assert all(update > 0 for update in step.update_norms[:-1])
    assert step.update_norms[-1] == 0
    state = [p.detach().double() for p in GPT2LMHeadModel.from_pretrained(base).parameters()]
    size = float(sum(p.square().sum() for p in state)) ** 0.5
    assert step.weight_norms[-1] == pytest.approx(size, rel=1e-5)


def test_a_resumed_adapter_goes_on_with_its_record_on_its_own_base_alone(
    base: Path, tmp_path: Path
) -> None:
    whole = trainer_of(tmp_path / "whole", model=adapter_on(base), **SAVING)
    whole.train()
    trained(tmp_path, base)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = trainer_of(tmp_path / "run", model=adapter_on(base), **SAVING)
    record(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert same_bits(weights_of(whole), weights_of(resumed))
    assert [(s.attempt, s.step) for s in steps_in(tmp_path / "run")][4:] == [(2, 3), (2, 4)]
    other = tiny_gpt2()
    torch.nn.init.normal_(other.transformer.wte.weight)
    other.save_pretrained(tmp_path / "other")
    stranger = trainer_of(tmp_path / "run", model=adapter_on(tmp_path / "other"), **SAVING)
    record(stranger)
    with pytest.raises(Exception, match="is the record of an adapter on a model whose weights"):
        stranger.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def flip(adapter: Path, base: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})


def retarget(adapter: Path, base: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80'))


def other_base(adapter: Path, base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["transformer.wte.weight"][3, 3] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "subject"), [(flip, "tensor"), (retarget, "file"), (other_base, "base")]
)
def test_changed_adapter_files_and_tensors_are_named(
    harm: Callable[[Path, Path], None], subject: str, base: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    trained(tmp_path, own)
    harm(tmp_path / "adapter", own)
    report = verify(tmp_path / "adapter")
    assert report.verdict is Verdict.NOT_VERIFIED
    assert subject in {finding.subject for finding in report.findings}


def test_moved_base_is_given_by_flag_and_missing_base_is_noted(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    trained(tmp_path, own)
    own.rename(tmp_path / "moved")
    report = verify(tmp_path / "adapter")
    assert report.verdict is Verdict.VERIFIED
    assert "the base model of the adapter was not checked: give it with --base" in report.notes
    report = verify(tmp_path / "adapter", base=tmp_path / "moved")
    assert report.base.startswith(f"{tmp_path / 'moved'} as recorded")
    report = verify(tmp_path / "moved", tmp_path / "run" / RECORD_NAME)
    assert report.verdict is Verdict.VERIFIED
    assert "the model that the run trained an adapter on" in report.base


def merged_by_itself(trainer: Any, out: Path) -> None:
    trainer.model.merge_and_unload().save_pretrained(out)


def merged_copy(trainer: Any, out: Path) -> None:
    copy.deepcopy(trainer.model).merge_and_unload().save_pretrained(str(out))


def merged_in_place(trainer: Any, out: Path) -> None:
    trainer.model = trainer.model.merge_and_unload()
    trainer.save_model(str(out))


@pytest.mark.parametrize("save", [merged_by_itself, merged_copy, merged_in_place])
def test_a_merged_model_that_is_saved_in_the_block_is_on_record(
    save: Callable[[Any, Path], None], base: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path / "run", model=adapter_on(base), **SAVING)
    before = GPT2LMHeadModel.save_pretrained
    with record(trainer):
        trainer.train()
        save(trainer, tmp_path / "merged")
    assert GPT2LMHeadModel.save_pretrained is before
    events = events_in(tmp_path / "run")
    adapter, merged = checkpoints_in(tmp_path / "run")[-2:]
    assert merged.merged_adapter_digest == adapter.weights_digest
    assert merged.step == 4
    assert events[-1].attempt_finished.weights_digest == adapter.weights_digest
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "merged")
    assert merged.weights_digest == digest_weights(loaded.state_dict())
    report = verify(tmp_path / "merged")
    assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])


def test_model_saved_to_a_temporary_folder_gets_no_copy_of_the_record(
    tmp_path: Path,
) -> None:
    """A copy of the record that is moved over the record would end it there."""
    trainer = trainer_of(tmp_path / "run", max_steps=2)
    with record(trainer):
        trainer.train()
        trainer.model.save_pretrained(tmp_path / "partial")
        for path in (tmp_path / "partial").iterdir():
            path.replace(tmp_path / "run" / path.name)
        trainer.save_model()
    events = events_in(tmp_path / "run")
    assert events[-1].attempt_finished.state == TrainingState.TRAINING_STATE_COMPLETED
    assert [c.path for c in checkpoints_in(tmp_path / "run")][-1] == "."


def test_a_merged_model_that_is_not_on_record_is_merged_again_and_compared(
    base: Path, tmp_path: Path
) -> None:
    trained(tmp_path, base)
    below = GPT2LMHeadModel.from_pretrained(base)
    whole = PeftModel.from_pretrained(below, str(tmp_path / "adapter")).merge_and_unload()
    whole.save_pretrained(tmp_path / "run" / "merged")
    report = verify(tmp_path / "run" / "merged")
    assert (report.verdict, report.findings, report.step) == (Verdict.VERIFIED, [], 4)
    assert "computed again: the same to the bit" in report.base
    config = tmp_path / "run" / "merged" / "config.json"
    config.write_text(config.read_text().replace("1e-05", "0.5"))
    (finding,) = verify(tmp_path / "run" / "merged").findings
    assert (finding.subject, finding.name) == ("file", "config.json")
    assert "layer_norm_epsilon" in finding.problem
    weight = whole.transformer.h[0].mlp.c_fc.weight.data
    original = weight.clone()
    weight[0, 0] = torch.nextafter(weight[0, 0], weight[0, 0] + 1)
    whole.save_pretrained(tmp_path / "run" / "merged")
    report = verify(tmp_path / "run" / "merged")
    assert report.verdict is Verdict.VERIFIED
    assert any(
        note.startswith("not bitwise equal: the largest difference") for note in report.notes
    )
    for harm in (0.001, float("nan")):
        weight.copy_(original)[0, 0] += harm
        whole.save_pretrained(tmp_path / "run" / "merged")
        report = verify(tmp_path / "run" / "merged")
        assert report.verdict is Verdict.NOT_VERIFIED
        assert "different from the adapter of step 4 merged into" in report.findings[-1].problem


def test_a_merge_of_an_earlier_step_is_not_held_to_a_later_one_on_record(
    base: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path / "run", model=adapter_on(base), **SAVING)
    with record(trainer):
        trainer.train()
        merged_by_itself(trainer, tmp_path / "run" / "merged")
    earlier = tmp_path / "run" / "checkpoint-2"
    below = GPT2LMHeadModel.from_pretrained(base)
    whole = PeftModel.from_pretrained(below, str(earlier)).merge_and_unload()
    whole.save_pretrained(tmp_path / "run" / "earlier")
    report = verify(tmp_path / "run" / "earlier")
    assert (report.verdict, report.findings, report.step) == (Verdict.VERIFIED, [], 2)
    report = verify(base, tmp_path / "run" / RECORD_NAME)
    assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
    whole.transformer.h[0].mlp.c_fc.weight.data[0, 0] += 0.01
    whole.save_pretrained(tmp_path / "run" / "earlier")
    assert verify(tmp_path / "run" / "earlier").verdict is Verdict.NOT_VERIFIED


@pytest.mark.parametrize("beside_another", [True, False])
def test_an_adapter_that_was_saved_under_its_name_verifies_in_its_own_directory(
    beside_another: bool, base: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    below = GPT2LMHeadModel.from_pretrained(base)
    if beside_another:
        model = get_peft_model(below, LORA)
        model.add_adapter("mine", LORA)
    else:
        model = get_peft_model(below, LORA, adapter_name="mine")
    trainer = trainer_of(tmp_path / "run", model=model, **SAVING)
    with record(trainer):
        trainer.train()
        trainer.save_model()
    for where in ("mine", "checkpoint-2/mine"):
        report = verify(tmp_path / "run" / where)
        assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
        assert report.num_tensors == len(load_file(report.directory / "adapter_model.safetensors"))
    flip(tmp_path / "run" / "mine", base)
    report = verify(tmp_path / "run" / "mine")
    assert report.verdict is Verdict.NOT_VERIFIED
    assert {"file", "tensor"} <= {finding.subject for finding in report.findings}


def test_an_adapter_that_was_added_to_a_model_of_transformers_is_one(
    base: Path, tmp_path: Path
) -> None:
    model = GPT2LMHeadModel.from_pretrained(base)
    model.add_adapter(LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    trainer = trainer_of(tmp_path / "run", model=model, **SAVING)
    with record(trainer):
        trainer.train()
        trainer.save_model(str(tmp_path / "adapter"))
    saved = checkpoints_in(tmp_path / "run")[-1]
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved.weights_digest == digest_weights(state)
    report = verify(tmp_path / "adapter")
    assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])


class SavesHalf(Trainer):
    """Write the weights in another dtype."""

    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        model = copy.deepcopy(self.model).to(torch.float16)
        model.save_pretrained(output_dir)


class SavesAState(Trainer):
    def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), Path(output_dir) / "mine.pt")


class SavesNothing(Trainer):
    def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:
        pass


@pytest.mark.parametrize("own_directory", [False, True])
@pytest.mark.parametrize("kind", [SavesHalf, SavesAState, SavesNothing])
def test_saved_files_are_digested_as_they_are(
    kind: type[Trainer], own_directory: bool, tmp_path: Path
) -> None:
    plain = trainer_of(tmp_path / "run", max_steps=2)
    trainer = kind(model=plain.model, args=plain.args, train_dataset=Rows(22))
    where = tmp_path / ("saved" if own_directory else "run")
    with record(trainer):
        trainer.train()
        trainer.save_model(str(where))
    events = events_in(tmp_path / "run")
    assert events[-1].attempt_finished.state == TrainingState.TRAINING_STATE_COMPLETED
    if kind is SavesNothing:
        (gap,) = [e.gap for e in events if e.HasField("gap")]
        assert (gap.subject, gap.step) == ("checkpoint", 2)
        assert "no file was written" in gap.reason
        return
    (saved,) = checkpoints_in(tmp_path / "run")
    for file in saved.files:
        assert file.sha256 == sha256((where / file.path).read_bytes())
    report = verify(where)
    assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
    assert any("every file is as it was saved" in note for note in report.notes)
    name = "mine.pt" if kind is SavesAState else "model.safetensors"
    assert name in {file.path for file in saved.files}
    octets = bytearray((where / name).read_bytes())
    octets[-1] ^= 1
    (where / name).write_bytes(octets)
    assert verify(where).verdict is Verdict.NOT_VERIFIED


@pytest.mark.parametrize("in_block", [False, True])
def test_a_tokenizer_that_is_saved_beside_the_model_is_an_addition(
    in_block: bool, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path / "run", max_steps=2)
    out = tmp_path / "saved"
    tokenizer = byte_level_tokenizer()
    with record(trainer):
        trainer.train()
        trainer.save_model(str(out))
        if in_block:
            tokenizer.save_pretrained(out)
    if not in_block:
        tokenizer.save_pretrained(out)
    (out / "README.md").write_text("a card")
    report = verify(out)
    assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
    notes = " ".join(report.notes)
    assert "added to what was saved, and no part of the model: README.md" in notes
    assert ("this tokenizer is not on record" in notes) == (not in_block)
    if in_block:
        saved = checkpoints_in(tmp_path / "run")[-1]
        assert (saved.model_digest, saved.step) == (report.model_digest, 2)
    for name in (
        "generation_config.json" if not (out / "generation_config.json").exists() else "x.bin",
        "model-00002-of-00002.safetensors",
        "adapter_config.json",
        "modeling_own.py",
        "pytorch_model.bin",
    ):
        (out / name).write_text("{}")
        report = verify(out)
        assert report.verdict is Verdict.NOT_VERIFIED
        assert ("file", name) in {(f.subject, f.name) for f in report.findings}
        (out / name).unlink()
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    assert verify(out).verdict is Verdict.NOT_VERIFIED


def test_a_text_s_emergence_over_adapters_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    trained(tmp_path, base)
    with pytest.raises(RefusedError, match="trained an adapter on") as refused:
        list_kept_weights(read_run(tmp_path / "run" / RECORD_NAME))
    assert refused.value.reason == "ADAPTER_RUN"


@pytest.mark.parametrize("own_first", [True, False])
def test_model_saved_twice_beside_different_files_verifies_in_both_places(
    tmp_path: Path, own_first: bool
) -> None:
    trainer = trainer_of(tmp_path / "run", Rows(8), num_train_epochs=1)

    def own() -> None:
        trainer.model.save_pretrained(tmp_path / "run" / "own")

    with record(trainer):
        trainer.train()
        if own_first:
            own()
        trainer.save_model(str(tmp_path / "run" / "trainer's"))
        if not own_first:
            own()
    assert not (tmp_path / "run" / "own" / "training_args.bin").exists()
    for name in ("own", "trainer's"):
        report = verify(tmp_path / "run" / name)
        assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
