"""ReLossTrainer: a Trainer whose loss is a learned surrogate of the metric."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.state import GradientState
from accelerate.utils import gather_object
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .metrics import Metric, load_metric
from .metrics.adapters import ComputeMetrics
from .recording import PredictionRecorder
from .surrogate_trainer import SurrogateTrainer, SurrogateTrainingArguments
from .surrogates.auto import AutoSurrogate
from .surrogates.base import Surrogate, output_tensor
from .surrogates.classification import SurrogateForClassification
from .surrogates.config import SurrogateConfig

logger = logging.get_logger(__name__)

SURROGATE_FOLDER = "surrogate"
"""Where a checkpoint keeps the surrogate."""


@dataclass
class ReLossTrainingArguments(TrainingArguments):
    """TrainingArguments with the knobs of `ReLossTrainer`. Plain `TrainingArguments` work too, with these defaults."""

    model_loss_share: float = field(
        default=0.0, metadata={"help": "Share of the model's own loss in the sum, 0 to 1; the rest is the surrogate's."}
    )
    surrogate_warmup: float | None = field(
        default=None,
        metadata={
            "help": "Training on the model's own loss before the surrogate takes over: steps, or a share of all steps "
            "if below 1. By default 0 with a given surrogate and 0.1 with 'auto', which records predictions meanwhile."
        },
    )
    max_recorded_predictions: int = field(
        default=20_000, metadata={"help": "With 'auto': the most predictions that each process keeps in memory."}
    )


class ReLossTrainer(Trainer):
    """A Trainer that trains on a surrogate of the metric.

    Everything that Trainer does it does: accumulation, several processes, mixed precision, evaluation, checkpoints.
    The loss of a batch is the mean of the surrogate over its labels, in training and in evaluation.

    Args:
        model, args, trainer_options: as for Trainer; `args` may be `ReLossTrainingArguments`.
        surrogate: a `Surrogate`, a folder or Hub id of one, or `"auto"`: the first stretch of training is on the
            model's own loss, its predictions are recorded, a surrogate is learned from them in seconds, and training
            goes on with it. It is saved in the folder `surrogate` of every checkpoint and of the final model.
        metric: what `"auto"` learns: a key of what `compute_metrics` returns, a name or whatever else `load_metric`
            takes. Of a name that `compute_metrics` gives too, the user's own function counts.

    Raises:
        ValueError: for label smoothing, `"auto"` without a metric, or something that is no surrogate.

    Example:
        >>> ReLossTrainer(model, args, train_dataset=data, surrogate="someone/reloss-accuracy")  # doctest: +SKIP
    """

    # The loss is a mean over the batch: Trainer divides it by the steps of accumulation, and DDP by the processes.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *trainer_args: Any,
        surrogate: Surrogate | str | Path = "auto",
        metric: Metric | Any = None,
        **trainer_options: Any,
    ):
        args = args or ReLossTrainingArguments(output_dir="tmp_trainer")
        learns = isinstance(surrogate, str) and surrogate == "auto"
        _check(args, learns, metric)
        if isinstance(surrogate, str | Path) and not learns:
            surrogate = AutoSurrogate.from_pretrained(surrogate)
        if not learns and not isinstance(surrogate, Surrogate):
            raise ValueError(
                "surrogate= wants a Surrogate, a folder or Hub id of one, or 'auto', but got "
                f"{type(surrogate).__name__}. Any other function is passed to Trainer as compute_loss_func=."
            )
        super().__init__(model, args, *trainer_args, **trainer_options)
        self.model_accepts_loss_kwargs = False  # nothing is normalised by the number of items
        self.surrogate: Surrogate | None = None if learns else self._placed(surrogate)
        self.metric = metric
        self.recorder: PredictionRecorder | None = None
        if learns:
            if self.compute_metrics is None or not isinstance(metric, str):
                self.metric = load_metric(metric)
            self.recorder = PredictionRecorder(_option(args, "max_recorded_predictions"))
            self.add_callback(_SwitchCallback(self))
        elif metric is not None:
            logger.warning("metric= is what surrogate='auto' learns; with a given surrogate it is not used.")

    @property
    def warmup_steps(self) -> int:
        """Steps on the model's own loss before the surrogate takes over."""
        warmup = _option(self.args, "surrogate_warmup")
        if warmup is None:
            warmup = 0.0 if self.recorder is None else 0.1
        steps = warmup if warmup >= 1 else round(warmup * self.state.max_steps)
        return max(int(steps), 0 if self.recorder is None else 1)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """Trains, as `Trainer.train`. A checkpoint brings its surrogate, or what has been recorded for it, with it."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if isinstance(resume_from_checkpoint, str | Path) and self.recorder is not None:
            folder = Path(resume_from_checkpoint)
            if (folder / SURROGATE_FOLDER).is_dir():
                self.surrogate = self._placed(AutoSurrogate.from_pretrained(folder / SURROGATE_FOLDER))
            elif (folder / self._recording_name).is_file():
                self.recorder.load(folder / self._recording_name)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = self._labels(inputs)
        share = _option(self.args, "model_loss_share")
        if self.surrogate is None or self.state.global_step < self.warmup_steps:
            share = 1.0
        if share > 0:
            # Without num_items_in_batch every loss, compute_loss_func's too, is a mean over the batch.
            own_loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
        else:
            own_loss, outputs = 0.0, model(**inputs)
        loss = own_loss if share == 1.0 else (1 - share) * self.surrogate(outputs, labels) + share * own_loss
        if self.surrogate is None and model.training:
            self._record(outputs, labels)
        return (loss, outputs) if return_outputs else loss

    def learn_surrogate(self) -> Surrogate:
        """Learns the surrogate from what has been recorded, on all processes together, and goes on with it.

        Raises:
            ValueError, MisalignedSurrogateError: if that fails. A checkpoint of the model has been written by then.
        """
        predictions = self._recorded_everywhere()
        args = self.args
        folder = Path(args.output_dir) / "_surrogate"  # with _, so that push_to_hub leaves it out while it is there
        with _undisturbed():
            learner = SurrogateTrainer(
                SurrogateForClassification(SurrogateConfig()),
                SurrogateTrainingArguments(
                    output_dir=str(folder),
                    # Few predictions make smaller groups: a tenth of them, of which a fifth is held out.
                    group_size=max(16, min(SurrogateTrainingArguments.group_size, len(predictions) // 10)),
                    seed=args.seed,
                    bf16=args.bf16,
                    fp16=args.fp16,
                    use_cpu=args.use_cpu,
                    disable_tqdm=args.disable_tqdm,
                    report_to="none",
                    log_level="error",
                ),
                train_dataset=predictions,
                metric=self.metric,
            )
            for talkative in (PrinterCallback, ProgressCallback):
                learner.pop_callback(talkative)
            learner.train()
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)
        self.surrogate = self._placed(learner.accelerator.unwrap_model(learner.model))
        record = self.surrogate.config.record
        usual = self.surrogate.original_loss
        self.log(
            {"surrogate_alignment": record["alignment"], f"surrogate_alignment_{usual}": record[f"alignment_{usual}"]}
        )
        logger.info(
            f"Surrogate for {self.surrogate.config.metric} learned from {len(predictions)} predictions: alignment "
            f"{record['alignment']:.3f} on held-out groups ({usual.replace('_', ' ')}: "
            f"{record[f'alignment_{usual}']:.3f}). It is the loss from step {self.state.global_step} on."
        )
        return self.surrogate

    def _labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        if len(self.label_names) != 1 or inputs.get(self.label_names[0]) is None:
            raise ValueError(
                f"A surrogate wants one tensor of labels, but label_names is {self.label_names} and the batch has "
                f"{sorted(inputs)}: check the data set's columns, or set label_names in TrainingArguments."
            )
        return inputs[self.label_names[0]]

    def _record(self, outputs: Any, labels: torch.Tensor) -> None:
        if not isinstance(self.metric, Metric):
            self.metric = self._metric_of_key(outputs, labels)
        if self.state.global_step < self.warmup_steps:
            self.recorder.add(outputs, labels, stage=self.state.global_step / max(self.state.max_steps, 1))

    def _metric_of_key(self, outputs: Any, labels: torch.Tensor) -> Metric:
        """The metric that a word means: a key of `compute_metrics`, or else a name. Found out on the first batch."""
        preprocess = self.preprocess_logits_for_metrics
        own = ComputeMetrics(
            self.compute_metrics,
            self.metric,
            preprocess_logits_for_metrics=preprocess,
            higher_is_better=self._higher_is_better(),
        )
        try:
            own.compute(output_tensor(outputs, "logits").detach().float().cpu(), labels.cpu())
        except KeyError as missing:
            try:
                return load_metric(self.metric)
            except ValueError as unknown:
                raise ValueError(f"{missing.args[0]} {unknown}") from None
        return own

    def _higher_is_better(self) -> bool:
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if chosen == self.metric.removeprefix("eval_") and self.args.greater_is_better is not None:
            return self.args.greater_is_better
        return not self.metric.endswith("loss")

    def _recorded_everywhere(self) -> datasets.Dataset:
        parts = gather_object([self.recorder.dataset().to_dict()])
        if len(parts) == 1:
            return self.recorder.dataset()
        features = self.recorder.dataset().features
        return datasets.concatenate_datasets([datasets.Dataset.from_dict(part, features=features) for part in parts])

    def _placed(self, surrogate: Surrogate) -> Surrogate:
        return surrogate.to(self.args.device).freeze()

    @property
    def _recording_name(self) -> str:
        return f"recording_{self.args.process_index}.safetensors"

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.surrogate is not None and self.args.should_save:
            self.surrogate.save_pretrained(Path(output_dir or self.args.output_dir) / SURROGATE_FOLDER)

    def _save_rng_state(self, output_dir: str) -> None:
        # As random states, what each process has recorded is needed to go on as if nothing had happened.
        super()._save_rng_state(output_dir)
        if self.surrogate is None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            self.recorder.save(Path(output_dir) / self._recording_name)


class _SwitchCallback(TrainerCallback):
    """Ends the first stretch of "auto"."""

    def __init__(self, trainer: ReLossTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, model=None, **kwargs):
        trainer = self.trainer
        if trainer.surrogate is not None or state.global_step < trainer.warmup_steps:
            return
        try:
            trainer.learn_surrogate()
        except Exception:
            trainer._save_checkpoint(model, trial=None)
            logger.error(
                f"No surrogate could be learned. The model is safe in {args.output_dir}/checkpoint-{state.global_step}:"
                " resume from there with another metric, a longer surrogate_warmup or a given surrogate."
            )
            raise


def _check(args: TrainingArguments, learns: bool, metric: Any) -> None:
    """Refuses arguments that contradict each other."""
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} smooths cross-entropy, which the surrogate "
            "replaces: set it to 0, or use Trainer."
        )
    if learns and metric is None:
        raise ValueError(
            "surrogate='auto' learns a surrogate of the metric, so it wants one: metric= a key of what compute_metrics "
            "returns, or a name such as 'accuracy'."
        )
    share = _option(args, "model_loss_share")
    if not 0 <= share <= 1:
        raise ValueError(f"model_loss_share is a share between 0 and 1, got {share}.")
    switches = learns or (_option(args, "surrogate_warmup") or 0) > 0
    keeps_best = args.load_best_model_at_end or args.save_strategy == "best"
    if switches and keeps_best and args.metric_for_best_model in (None, "loss", "eval_loss"):
        raise ValueError(
            "The loss changes when the surrogate takes over, so it cannot tell which checkpoint is the best: set "
            "metric_for_best_model to a metric that compute_metrics returns."
        )


def _option(args: TrainingArguments, name: str) -> Any:
    return getattr(args, name, getattr(ReLossTrainingArguments, name))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Runs another Trainer inside one that is training: random states, the log, and what Accelerate shares stay."""
    random_states = random.getstate(), np.random.get_state()
    shared = dict(GradientState._shared_state)
    verbosity = logging.get_verbosity()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(random_states[0])
            np.random.set_state(random_states[1])
            GradientState._shared_state.update(shared)
            logging.set_verbosity(verbosity)
