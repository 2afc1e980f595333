"""Recording of checkpoints and evaluations, with digests and the step of the weights."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tiny_training import Rows, events_in, trainer_of
from transformers import TrainerCallback

from whence_server.engines.transformers.digests import (
    digest_files,
    digest_model_files,
    digest_weights,
)
from whence_server.training import record

pytestmark = pytest.mark.usefixtures("one_thread")


def test_checkpoints_are_digested_and_kept_and_evaluations_are_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(
        tmp_path,
        save_strategy="steps",
        save_steps=4,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=6,
        eval_dataset=Rows(5),
    )
    record(trainer)
    assert "save_total_limit=1 is lifted" in caplog.text
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    events = events_in(tmp_path)
    checkpoints = [e.checkpoint for e in events if e.WhichOneof("event") == "checkpoint"]
    assert [(c.path, c.step, c.resumable) for c in checkpoints] == [
        ("checkpoint-4", 4, True),
        ("checkpoint-8", 8, True),
        ("checkpoint-12", 12, True),
        ("final", 12, False),
    ]
    for checkpoint in checkpoints:
        directory = tmp_path / checkpoint.path
        names = [path.name for path in directory.iterdir() if path.name != "lineage.binpb"]
        digests = digest_files(directory, names)
        assert [(f.path, f.sha256) for f in checkpoint.files] == [
            (f.path, f.sha256) for f in digests
        ]
        names = {tensor.name for tensor in checkpoint.tensors}
        assert "lm_head.weight" in names
        assert "transformer.wte.weight" not in names  # tied
    assert checkpoints[-1].weights_digest == digest_weights(trainer.model.state_dict())
    evaluations = [e.evaluation for e in events if e.WhichOneof("event") == "evaluation"]
    assert [e.step for e in evaluations] == [6, 12]
    assert evaluations[0].metrics["eval_loss"] > 0
    # The record beside the saved model is the record.
    assert events_in(tmp_path / "final") == events


def test_a_model_with_its_tokenizer_has_the_digest_that_the_server_gives(
    tmp_path: Path, tiny_model: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whence_server.engines.transformers.weights import list_model_files, list_weight_files

    source = tiny_model("gpt2")
    trainer = trainer_of(tmp_path, model=AutoModelForCausalLM.from_pretrained(source), max_steps=1)
    trainer.processing_class = AutoTokenizer.from_pretrained(source)
    recorder = record(trainer)
    trainer.train()
    trainer.save_model()
    assert recorder.run is not None
    checkpoint = events_in(tmp_path)[-1].checkpoint
    names = list_model_files(tmp_path, list_weight_files(tmp_path), with_code=False)
    digest = digest_model_files(digest_files(tmp_path, names))
    assert (checkpoint.path, checkpoint.model_digest) == (".", digest)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert checkpoint.weights_digest == digest_weights(loaded.state_dict())
    assert events_in(tmp_path)[0].started.tokenizer_digest


def test_checkpoint_rotation_can_be_kept(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=5, save_total_limit=1)
    record(trainer, keep_checkpoints=False)
    trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]


@pytest.mark.parametrize("in_block", [False, True])
def test_a_model_whose_best_weights_were_loaded_again_is_on_record_by_their_step(
    in_block: bool, tmp_path: Path
) -> None:
    class Worsens(TrainerCallback):
        """The second measurement is the best of three."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["metrics"]["eval_quality"] = {4: 1.0, 8: 2.0}.get(state.global_step, 0.0)

    trainer = trainer_of(
        tmp_path / "run",
        callbacks=[Worsens()],
        eval_dataset=Rows(5),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="quality",
        greater_is_better=True,
    )
    with record(trainer) if in_block else nullcontext(record(trainer)):
        trainer.train()
        trainer.save_model(str(tmp_path / "best"))
        trainer.evaluate()
    events = events_in(tmp_path / "run")
    by_step = {
        e.checkpoint.step: e.checkpoint
        for e in events
        if e.WhichOneof("event") == "checkpoint" and e.checkpoint.resumable
    }
    assert sorted(by_step) == [4, 8, 12]
    kinds = ["attempt_finished", "checkpoint", "evaluation"]
    kinds = kinds[1:] + kinds[:1] if in_block else kinds
    assert [event.WhichOneof("event") for event in events[-3:]] == kinds
    final = events[-3 + kinds.index("checkpoint")].checkpoint
    evaluation = events[-3 + kinds.index("evaluation")].evaluation
    assert final.path.endswith("/best")
    assert (final.step, final.weights_digest) == (8, by_step[8].weights_digest)
    assert final.weights_digest != by_step[12].weights_digest
    assert evaluation.step == 8
    finished = next(e.attempt_finished for e in events if e.HasField("attempt_finished"))
    assert (finished.step, finished.weights_digest) == (12, final.weights_digest)


def test_measurements_after_the_training_are_recorded(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2, eval_dataset=Rows(5))
    record(trainer)
    trainer.train()
    trainer.evaluate()
    evaluation = events_in(tmp_path)[-1].evaluation
    assert (evaluation.step, evaluation.attempt) == (2, 1)
    assert evaluation.metrics["eval_loss"] > 0
