"""ReLossTrainer and ReLossSeq2SeqTrainer: Trainers whose loss is a learned surrogate of the metric."""

import contextlib
import inspect
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import broadcast, gather_object
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .metrics import AdditiveMetric, Metric, load_metric
from .metrics.adapters import ComputeMetrics
from .metrics.base import IGNORED_LABEL
from .recording import PredictionRecorder, batch_labels, joined, recorded_dataset, scored, unwrapped, writes_text
from .surrogate_trainer import SurrogateTrainer, SurrogateTrainingArguments
from .surrogates.auto import AutoSurrogate
from .surrogates.base import Surrogate, output_tensor
from .surrogates.config import SurrogateConfig

logger = logging.get_logger(__name__)

SURROGATE_FOLDER = "surrogate"
"""Where a checkpoint keeps the surrogate."""

_FEWEST_PREDICTIONS = 160
"""What "auto" records at least, in all processes together: the held-out fifth makes groups of 16."""


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


@dataclass
class ReLossSeq2SeqTrainingArguments(ReLossTrainingArguments, Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with the knobs of `ReLossSeq2SeqTrainer`."""


class _SurrogateLoss:
    """What makes a Trainer one that trains on a surrogate of the metric.

    Everything that the Trainer does it does: accumulation, several processes, mixed precision, evaluation, checkpoints.
    The loss of a batch is the surrogate's of its predictions, in training and in evaluation. What a model puts out as
    `auxiliary_loss`, a scalar, is added to it: the part of its loss that no surrogate is for, such as that of a length
    that it predicts.

    Args:
        model, args, trainer_options: as for the Trainer; `args` may be `ReLossTrainingArguments` or
            `ReLossSeq2SeqTrainingArguments`. Texts are decoded with the tokenizer, `processing_class`.
        surrogate: a `Surrogate` (which is frozen), a folder or Hub id of one, or `"auto"`: the first stretch of a run
            is on the model's own loss, its predictions are recorded, a surrogate is learned from them, and the rest is
            trained on that. It is saved in the folder `surrogate` of every checkpoint and of the final model. Each call
            of `train` learns its own.
        metric: what `"auto"` learns: a key of what `compute_metrics` returns, a name or whatever else `load_metric`
            takes. Of a name that `compute_metrics` gives too, the user's own function counts.

    Raises:
        ValueError: for label smoothing, `"auto"` without a metric, or something that is no surrogate.
    """

    # The loss is a mean over the batch: Trainer divides it by the steps of accumulation, and DDP by the processes.
    loss_is_scaled_for_ga = False
    _default_arguments: ClassVar[type[TrainingArguments]]

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *trainer_args: Any,
        surrogate: Surrogate | str | Path = "auto",
        metric: Metric | Any = None,
        **trainer_options: Any,
    ):
        args = args or self._default_arguments(output_dir="tmp_trainer")
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
        self.recorder: PredictionRecorder | None = None
        self.metric: Metric | None = None
        self._wanted_metric = metric
        self._first_step = 0
        if learns:
            if self.compute_metrics is None or not isinstance(metric, str):
                self._wanted_metric = load_metric(metric)
            self._start_recording()
            self.add_callback(_SwitchCallback(self))
        elif metric is not None:
            logger.warning("metric= is what surrogate='auto' learns; with a given surrogate it is not used.")

    @property
    def warmup_steps(self) -> int:
        """Steps on the model's own loss before the surrogate takes over; with "auto" so many that it can be learned."""
        warmup = _option(self.args, "surrogate_warmup")
        if warmup is None:
            warmup = 0.0 if self.recorder is None else 0.1
        steps = int(warmup if warmup >= 1 else round(warmup * self.state.max_steps))
        if self.recorder is None:
            return steps
        examples_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self._first_step + max(steps, math.ceil(_FEWEST_PREDICTIONS / examples_per_step))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """Trains, as `Trainer.train`. A checkpoint brings its surrogate, or what has been recorded for it, with it."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if self.recorder is not None:
            self._start_recording()
            if isinstance(resume_from_checkpoint, str | Path):
                self._resume_recording(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = self._labels(inputs)
        share = _option(self.args, "model_loss_share")
        warming_up = self.recorder is None and self.state.global_step < self.warmup_steps
        if self.surrogate is None or warming_up:
            share = 1.0
        withheld = share == 0 and self.surrogate.task == "tokens"
        if share > 0:
            # Without num_items_in_batch every loss, compute_loss_func's too, is a mean over the batch.
            own_loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
        else:
            own_loss, outputs = 0.0, model(**(self._without_labels(model, inputs) if withheld else inputs))
        loss = own_loss
        if share < 1:
            auxiliary_loss = outputs.get("auxiliary_loss") if isinstance(outputs, Mapping) else None
            replaced = self.surrogate(outputs, labels) + (0.0 if auxiliary_loss is None else auxiliary_loss)
            loss = (1 - share) * replaced + share * own_loss
        if model.training:
            if self.surrogate is None:
                self._record(outputs, labels, inputs)
            if withheld:  # with the labels, what hears a model's forward passes has gone without them
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, PredictionRecorder):
                        callback.hear(model, outputs, inputs)
        # Trainer takes the first of other outputs for the loss, which a model trained on a surrogate need not have.
        outputs = outputs if isinstance(outputs, Mapping) else {"logits": output_tensor(outputs, "logits")}
        return (loss, outputs) if return_outputs else loss

    def _without_labels(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs that spare the model its own loss, which costs as much again where the vocabulary is large."""
        given = {name: value for name, value in inputs.items() if name not in self.label_names}
        model = unwrapped(model)
        if writes_text(model) and model.config.is_encoder_decoder and "decoder_input_ids" not in given:
            shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
            if shift is None:  # only the model knows what its decoder reads
                return inputs
            given["decoder_input_ids"] = shift(labels=inputs[self.label_names[0]])
            if "use_cache" in inspect.signature(model.forward).parameters:
                given.setdefault("use_cache", False)  # as with labels
        return given

    def learn_surrogate(self) -> Surrogate:
        """Learns the surrogate from what has been recorded, on all processes together, and goes on with it.

        Raises:
            ValueError, MisalignedSurrogateError: if that fails. A checkpoint of the model has been written by then.
        """
        args, kind = self.args, self.recorder.kind
        predictions = self._recorded_everywhere()
        folder = Path(args.output_dir) / "_surrogate"  # with _, so that push_to_hub leaves it out while it is there
        with _undisturbed(), self._cleared(folder):
            learner = SurrogateTrainer(
                kind.for_metric(self.metric),
                SurrogateTrainingArguments(
                    output_dir=str(folder),
                    # Few predictions make smaller groups: a tenth of them, of which a fifth is held out.
                    group_size=max(
                        _FEWEST_PREDICTIONS // 10, min(SurrogateTrainingArguments.group_size, len(predictions) // 10)
                    ),
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
        self.surrogate = self._placed(learner.accelerator.unwrap_model(learner.model))
        broadcast(list(self.surrogate.state_dict().values()))  # one and the same, also without a shared disk
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
        labels = batch_labels(self.model, inputs, self.label_names)
        if labels is None:
            raise ValueError(
                f"A surrogate wants labels, but label_names is {self.label_names} and the batch has {sorted(inputs)}: "
                "check the data set's columns, or set label_names in TrainingArguments."
            )
        return labels

    def _start_recording(self) -> None:
        self.surrogate, self.metric, self._first_step = None, None, 0
        self.recorder = PredictionRecorder(_option(self.args, "max_recorded_predictions"))

    def _resume_recording(self, checkpoint: Path) -> None:
        """Takes the surrogate, or what has been recorded for it, from a checkpoint."""
        if (checkpoint / SURROGATE_FOLDER).is_dir():
            self.surrogate = self._placed(AutoSurrogate.from_pretrained(checkpoint / SURROGATE_FOLDER))
        elif (checkpoint / self._recording_name).is_file():
            self.recorder.load(checkpoint / self._recording_name)
        else:
            self._first_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
            logger.warning(f"{checkpoint} has no surrogate and no recording for one: recording starts now.")

    def _record(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        if self.metric is None:
            self.metric = self._checked_metric(outputs, labels, inputs)
        self.recorder.add(outputs, labels, self.state.global_step / max(self.state.max_steps, 1), inputs)

    @property
    def _decoding(self) -> Any:
        """What decodes the token ids that are recorded, or None if they stand for classes."""
        kind = self.recorder.kind
        reads_text = kind.task == "spans" or (kind.task == "tokens" and writes_text(self.model))
        return self.processing_class if reads_text and hasattr(self.processing_class, "batch_decode") else None

    def _checked_metric(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> Metric:
        """The metric that is to be learned, tried on the first batch: what fails should fail now.

        A word means a key of `compute_metrics`, or else the name of a metric.
        """
        kind = self.recorder.kind = AutoSurrogate.reading(outputs, labels)
        kind(SurrogateConfig(task=kind.task)).to(labels.device).evidence(outputs, labels)
        columns = kind.recorded(outputs, labels, inputs)
        columns = {name: column.detach().cpu() for name, column in columns.items()}
        metric = self._wanted_metric
        if isinstance(metric, str):
            metric = self._metric_of_key(outputs, columns)
        try:
            metric.compute(*scored(kind, columns, self._decoding))
        except Exception as error:  # a batch may be too small for it, so this is no more than a sign
            if isinstance(metric, AdditiveMetric):  # which any batch is large enough for
                raise
            logger.warning(
                f"The metric {metric.name!r} cannot score the first batch ({error!r}). If it cannot score groups "
                f"either, the run will stop at step {self.warmup_steps}, where the surrogate is learned."
            )
        return metric

    def _metric_of_key(self, outputs: Any, columns: dict[str, torch.Tensor]) -> Metric:
        kind = self.recorder.kind
        if kind.task != "classification":
            # What is recorded elsewhere is not what compute_metrics takes: ids, not the logits of a vocabulary.
            return load_metric(self._wanted_metric)
        passed_over = {"loss", *getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ())}
        own = ComputeMetrics(
            self.compute_metrics,
            self._wanted_metric,
            preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
            higher_is_better=self._higher_is_better(),
            in_tuple=isinstance(outputs, Mapping) and len(outputs.keys() - passed_over) > 1,
        )
        logits, labels = columns["logits"], columns["labels"]
        counts = labels != IGNORED_LABEL
        try:
            keys = own.results(logits[counts].numpy(), labels[counts].numpy()).keys()
        except Exception:  # which is told of when it is tried as the metric
            return own
        if own.key in keys:
            return own
        try:
            return load_metric(self._wanted_metric)
        except ValueError as unknown:
            raise ValueError(f"compute_metrics gives {sorted(keys)}, without {own.key!r}. {unknown}") from None

    def _higher_is_better(self) -> bool:
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if chosen == self._wanted_metric.removeprefix("eval_") and self.args.greater_is_better is not None:
            return self.args.greater_is_better
        return not self._wanted_metric.endswith("loss")

    def _recorded_everywhere(self) -> datasets.Dataset:
        """What all processes have recorded."""
        parts = gather_object([self.recorder.rows()])
        columns = {name: joined([part[name] for part in parts]) for name in parts[0] if name != "index"}
        return recorded_dataset(self.recorder.kind, columns, tokenizer=self._decoding, metric=self.metric)

    @contextlib.contextmanager
    def _cleared(self, folder: Path) -> Iterator[None]:
        """Takes a folder away at the end."""
        try:
            yield
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(folder, ignore_errors=True)

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


class ReLossTrainer(_SurrogateLoss, Trainer):
    __doc__ = f"""A Trainer that trains on a surrogate of the metric.
{_SurrogateLoss.__doc__.partition("metric.")[2]}
    Example:
        >>> ReLossTrainer(model, args, train_dataset=data, surrogate="someone/reloss-accuracy")  # doctest: +SKIP
    """
    _default_arguments = ReLossTrainingArguments


class ReLossSeq2SeqTrainer(_SurrogateLoss, Seq2SeqTrainer):
    __doc__ = f"""A Seq2SeqTrainer that trains on a surrogate of the metric: `ReLossTrainer` for models that write text.

    With `predict_with_generate` it evaluates what the model generates. Under several processes each example is scored
    once, also where the last batch was filled up.
{_SurrogateLoss.__doc__.partition("metric.")[2]}
    Example:
        >>> ReLossSeq2SeqTrainer(model, args, train_dataset=data, surrogate="someone/reloss-bleu")  # doctest: +SKIP
    """
    _default_arguments = ReLossSeq2SeqTrainingArguments

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        # Seq2SeqTrainer gathers what fills up the last batch, too, which then is scored twice.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        if not self.args.predict_with_generate or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        # Seq2SeqTrainer would take the model's own loss: here it generates, and the loss is the one that is trained on.
        prompt = {name: x for name, x in inputs.items() if name not in (*self.label_names, "decoder_input_ids")}
        _, generated, _ = super().prediction_step(model, prompt, False, ignore_keys, **gen_kwargs)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get(self.label_names[0])
        if labels is None:
            return None, generated, None
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach().mean()
        return loss, generated, labels


class _SwitchCallback(TrainerCallback):
    """Ends the first stretch of "auto"."""

    def __init__(self, trainer: _SurrogateLoss):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        steps = self.trainer.warmup_steps
        if self.trainer.surrogate is None and steps >= state.max_steps:
            logger.warning(
                f"No surrogate will be learned: recording predictions takes {steps} steps, and the run has "
                f"{state.max_steps}. Train for longer, or pass a surrogate that has been learned before."
            )

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
    if learns and args.batch_eval_metrics:
        raise ValueError(
            "With batch_eval_metrics=True compute_metrics cannot score groups one by one, as surrogate='auto' needs: "
            "turn it off, or pass metric= a name or a function, without compute_metrics."
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
    shared = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState, GradientState)]
    verbosity = logging.get_verbosity()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(random_states[0])
            np.random.set_state(random_states[1])
            for kind, state in shared:
                kind._shared_state.clear()
                kind._shared_state.update(state)
            logging.set_verbosity(verbosity)
