"""The one callback through which a strategy and the monitor follow a run."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..predictions.models import unwrapped
from .renamed_weights import restore_renamed


class StrategyCallback(TrainerCallback):
    """Tells the strategy of a trainer where its run is, and ends a run that has diverged.

    Such a run ends before the optimizer's step, in all processes alike, and writes no checkpoint any more.

    Args:
        trainer: whose run it is.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore_renamed(self.trainer.resumed_from)
        self.trainer.strategy.begin()

    def _restore_renamed(self, checkpoint: Path | None) -> None:
        if checkpoint is not None and not (self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled):
            restore_renamed(unwrapped(self.trainer.model), checkpoint)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        monitor = self.trainer.monitor
        if not monitor.check_gradients(model):
            return
        if getattr(self.trainer.accelerator, "scaler", None) is None:
            model.zero_grad()  # so the step, which nothing can keep the trainer from, changes no weight
        self._stop(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.monitor.failure is not None:
            self._stop(control)
        else:
            self.trainer.strategy.end_step()
            self.trainer.guard.end_step(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.guard.saved()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.monitor.failure is not None or self.trainer.guard.ends_run:
            self._stop(control)

    @staticmethod
    def _stop(control: TrainerControl) -> None:
        control.should_training_stop = True
        control.should_evaluate = control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.monitor.failure is not None:
            return
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint is not None else None
        self.trainer.has_best_model = args.load_best_model_at_end and best is not None
        self._restore_renamed(best if self.trainer.has_best_model else None)
        self.trainer.strategy.end(best if self.trainer.has_best_model else None)
