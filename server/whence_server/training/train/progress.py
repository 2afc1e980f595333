"""Trainer callbacks for the progress bar and for an early stop."""

from typing import Any

from transformers import ProgressCallback, TrainerCallback


class LossProgressBar(ProgressCallback):
    """Progress bar of the trainer that shows the loss at its end instead of logging it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the bar at the step that a resumed training continues from."""
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
        """Close the bars, so that later output begins on a new line."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()


class StopAfterStep(TrainerCallback):
    """Callback that ends a training after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the trainer to stop."""
        del args, kwargs
        if state.global_step >= self._step:
            control.should_training_stop = True
