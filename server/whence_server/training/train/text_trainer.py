"""Trainer of `whence-server train`: transformers' `Trainer` on blocks of text."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.data import default_data_collator

from whence_server.config.training import TrainConfig
from whence_server.domain.errors import LineageError
from whence_server.training.train.preparing import TrainerInputs

_LOGGING_STEPS = 20


class _TextTrainer(Trainer):
    """Trainer with a helpful error if a checkpoint cannot be written."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have no specific exception for a full disk.
            detail = str(error).splitlines()[0]
            raise LineageError(
                f"the checkpoint of step {self.state.global_step} cannot be written ({detail}): "
                "if the disk is full, free space and resume with --resume"
            ) from error


def make_text_trainer(
    settings: TrainConfig, prepared: TrainerInputs, directory: Path, *, saves: bool
) -> Trainer:
    """Create the trainer.

    Args:
        settings: settings of the training.
        prepared: model, tokenizer and datasets.
        directory: directory of the checkpoints.
        saves: True to save checkpoints.
    """
    evaluates = prepared.evaluation_set is not None
    trainer = _TextTrainer(
        model=prepared.model,
        args=TrainingArguments(
            output_dir=str(directory),
            num_train_epochs=settings.epochs or 1,
            max_steps=settings.max_steps or -1,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            adam_beta2=settings.adam_beta2,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            use_cpu=settings.device == "cpu",
            dataloader_pin_memory=False,
            logging_steps=min(_LOGGING_STEPS, settings.max_steps or _LOGGING_STEPS),
            save_strategy="steps" if saves else "no",
            save_steps=settings.save_steps,
            eval_strategy="steps" if evaluates else "no",
            eval_steps=settings.eval_steps or settings.save_steps,
            report_to="none",
            disable_tqdm=False,
        ),
        data_collator=default_data_collator,
        train_dataset=prepared.training_set.blocks,
        eval_dataset=prepared.evaluation_set.blocks if prepared.evaluation_set else None,
        processing_class=prepared.tokenizer,
    )
    trainer.remove_callback(ProgressCallback)
    return trainer
