"""What `surrogate="auto"` does in a run: predictions are recorded, and a surrogate is learned from them."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast, gather_object
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.utils import logging

from .isolation import undisturbed
from .metrics import AdditiveMetric, Metric, load_metric, metric_of
from .metrics.adapters import ComputeMetrics
from .metrics.base import IGNORED_LABEL
from .recording import PredictionRecorder, described, joined, recorded_dataset, scored, writes_text
from .surrogate_trainer import MisalignedSurrogateError, SurrogateTrainer, SurrogateTrainingArguments
from .surrogates.auto import AutoSurrogate
from .surrogates.base import Surrogate
from .surrogates.config import SurrogateConfig

logger = logging.get_logger(__name__)

SURROGATE_FOLDER = "surrogate"
"""Where a checkpoint keeps the surrogate."""

FEWEST_PREDICTIONS = 160
"""What "auto" records at least, in all processes together: the held-out fifth makes groups of 16."""


class LearnsSurrogate:
    """The part of a Trainer that records predictions and learns a surrogate of the metric from them.

    Attributes:
        surrogate: the loss; None as long as it is to be learned.
        recorder: of the predictions to learn from; None with a given surrogate.
        metric: what is learned, once the first batch has shown what it scores.
    """

    surrogate: Surrogate | None
    recorder: PredictionRecorder | None
    metric: Metric | None
    _approximates: bool = False

    def learn_surrogate(self) -> Surrogate:
        """Learns the surrogate from what has been recorded, on all processes together, and goes on with it.

        Raises:
            ValueError, MisalignedSurrogateError: if that fails. A checkpoint of the model has been written by then.
        """
        args, kind = self.args, self.recorder.kind
        predictions = self._recorded_everywhere()
        why = "The warm-up is over" if self.surrogate is None else f"{self._refresh_steps} steps more are recorded"
        self._tell(
            f"{why} at step {self.state.global_step}: learning a surrogate of {self.metric.name} from "
            f"{len(predictions):,} predictions."
        )
        folder = Path(args.output_dir) / "_surrogate"  # with _, so that push_to_hub leaves it out while it is there
        with undisturbed(), self._cleared(folder):
            to_learn, how = self._to_learn(kind, self.metric)
            learner = SurrogateTrainer(
                to_learn,
                SurrogateTrainingArguments(
                    output_dir=str(folder),
                    **how,
                    # Few predictions make smaller groups: a tenth of them, of which a fifth is held out.
                    group_size=max(
                        FEWEST_PREDICTIONS // 10, min(SurrogateTrainingArguments.group_size, len(predictions) // 10)
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
            for talkative in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
                learner.pop_callback(talkative)
            if not args.disable_tqdm:
                learner.add_callback(_LearningBar)
            learner.train()
        self.surrogate = self._placed(learner.accelerator.unwrap_model(learner.model))
        broadcast(list(self.surrogate.state_dict().values()))  # one and the same, also without a shared disk
        if self._refresh_steps is not None:
            self.recorder = self._fresh_recorder()
            self.recorder.kind = kind
        record = self.surrogate.config.record
        usual = self.surrogate.original_loss
        logs_next = self.control.should_log  # which logging this would take back
        self.log(
            {"surrogate_alignment": record["alignment"], f"surrogate_alignment_{usual}": record[f"alignment_{usual}"]}
        )
        self.control.should_log = logs_next
        self._tell(
            f"Switched at step {self.state.global_step} to the surrogate for {self.metric.name}: its "
            f"alignment on held-out groups is {record['alignment']:.3f}, against {record[f'alignment_{usual}']:.3f} "
            f"for {usual.replace('_', ' ')}."
        )
        return self.surrogate

    def refresh_surrogate(self) -> Surrogate:
        """Learns the surrogate again from what has been recorded since; if that fails, it stays as it is."""
        try:
            return self.learn_surrogate()
        except (MisalignedSurrogateError, ValueError) as error:
            logger.warning(f"At step {self.state.global_step} the surrogate stays as it was: {error}")
            return self.surrogate

    def _to_learn(self, kind: type[Surrogate], metric: Metric) -> tuple[Surrogate, dict[str, Any]]:
        """The surrogate that is to be learned, and how: ranks, or values in turn with the model."""
        if not self._approximates:
            return kind.for_metric(metric), {}
        network, settings = kind(SurrogateConfig(task=kind.task, architecture="set")), {"objective": "approximation"}
        if self.surrogate is not None:  # it goes on from what it was
            network.load_state_dict(self.surrogate.state_dict())
            settings["num_train_epochs"] = 2
        return network, settings

    @property
    def _is_recording(self) -> bool:
        """Whether predictions are taken note of: until a surrogate is learned or, if it is to be again, always."""
        return self.recorder is not None and (self.surrogate is None or self._refresh_steps is not None)

    @property
    def _refresh_steps(self) -> int | None:
        steps = getattr(self.args, "refresh_steps", None)
        return max(1, self.warmup_steps) if steps is None and self._approximates else steps

    def _start_recording(self) -> None:
        self.surrogate, self.metric, self._first_step = None, None, 0
        self.recorder = self._fresh_recorder()

    def _fresh_recorder(self) -> PredictionRecorder:
        return PredictionRecorder(
            getattr(self.args, "max_recorded_predictions", PredictionRecorder.default_max_predictions)
        )

    def _resume_recording(self, checkpoint: Path) -> None:
        """Takes the surrogate, or what has been recorded for it, from a checkpoint."""
        if (checkpoint / SURROGATE_FOLDER).is_dir():
            self.surrogate = self._placed(AutoSurrogate.from_pretrained(checkpoint / SURROGATE_FOLDER))
            self.watched_metric = metric_of(self.surrogate.config.metric)
        recording = checkpoint / self._recording_name
        if recording.is_file():
            self.recorder.load(recording)
        if self.surrogate is None and not any(gather_object([recording.is_file()])):  # all processes go on alike
            self._first_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
            logger.warning(f"{checkpoint} has no surrogate and no recording for one: recording starts now.")

    def _find_metric(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        """Finds out what is to be learned, and watched, from the first batch of a run."""
        if self.metric is None:
            self.metric = self.watched_metric = self._checked_metric(outputs, labels, inputs)

    def _record(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        self.recorder.add(outputs, labels, self.state.global_step / max(self.state.max_steps, 1), inputs)

    def _decoding(self, kind: type[Surrogate]) -> Any:
        """What decodes the token ids that a surrogate of a kind records, or None if they stand for classes."""
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
        with torch.random.fork_rng(devices=[]):
            self._to_learn(kind, metric)  # of embeddings there is nothing to learn
        try:
            metric.compute(*scored(kind, columns, self._decoding(kind)))
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
        parts = [part for part in gather_object([self.recorder.rows() if len(self.recorder) else None]) if part]
        if not parts:
            raise ValueError("Nothing has been recorded to learn a surrogate from.")
        columns = {name: joined([part[name] for part in parts]) for name in parts[0] if name != "index"}
        return recorded_dataset(
            self.recorder.kind,
            columns,
            tokenizer=self._decoding(self.recorder.kind),
            metric=self.metric,
            description=described(self.model),
        )

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


class _LearningBar(ProgressCallback):
    """How far the learning of a surrogate is, in a bar that goes away."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("surrogate")
            self.training_bar.leave = False

    def on_prediction_step(self, args, state, control, **kwargs):
        pass

    def on_log(self, args, state, control, **kwargs):
        pass


class SwitchCallback(TrainerCallback):
    """Ends the first stretch, on the model's own loss."""

    def __init__(self, trainer: LearnsSurrogate):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        steps = self.trainer.warmup_steps
        if self.trainer.recorder is None and state.global_step < steps < state.max_steps:
            self.trainer._tell(f"The model's own loss is the loss until step {steps}, for a warm-up.")
        if self.trainer.recorder is not None and self.trainer.surrogate is None and steps >= state.max_steps:
            logger.warning(
                f"No surrogate will be learned: recording predictions takes {steps} steps, and the run has "
                f"{state.max_steps}. Train for longer, or pass a surrogate that has been learned before."
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):
        trainer = self.trainer
        since = state.global_step - trainer.warmup_steps
        if trainer.recorder is None:
            if since == 0:
                config = trainer.surrogate and trainer.surrogate.config
                named = "minimum risk" if config is None else config.origin or f"the surrogate for {config.metric}"
                trainer._tell(f"The warm-up is over: switched at step {state.global_step} to {named}.")
            return
        if trainer.surrogate is not None:
            if trainer._is_recording and since > 0 and since % trainer._refresh_steps == 0:
                trainer.refresh_surrogate()
            return
        if since < 0:
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
