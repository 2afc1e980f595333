"""The training's progress bar."""

from typing import Any

from transformers import ProgressCallback, TrainerCallback


class LossOnTheBar(ProgressCallback):
    """Trainer's progress bar, with the loss at its end instead of a line for each log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin where a resumed training goes on."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("training")
            self.training_bar.update(state.global_step)
            self.current_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss."""
        del args, state, control, kwargs
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.2f}")

    def close(self) -> None:
        """Leave the line to whoever has something to say."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()


class StopAt(TrainerCallback):
    """Ends a training after a step, as if it had been interrupted there."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the trainer to stop."""
        del args, kwargs
        if state.global_step >= self._step:
            control.should_training_stop = True
