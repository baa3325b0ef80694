"""ReLossMixin: what makes a Trainer one that trains on a surrogate of the metric."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput
from transformers.utils import PushToHubMixin, logging

from ..decisions.base import DecisionRule, SavedRule
from ..decisions.tuning import TunedDecision
from ..hub.trained_models import write_loss
from ..learning.checkpoints import last_whole_checkpoint
from ..losses.base import Evidence
from ..metrics import Metric
from ..predictions.models import is_ctc, takes_labels, unwrapped, without_labels, writes_text
from ..predictions.recorder import PredictionRecorder
from ..progress import without_bars
from ..surrogates.base import Surrogate, output_tensor
from .arguments import check, check_kinds, option, output_folder
from .batch import Batch, StepBatches
from .callback import StrategyCallback
from .deciding import DECISION, judged_by, tuned_decision
from .guard import Guard
from .monitor import RunMonitor
from .report import LossReport
from .strategies.base import LossDescription, LossStrategy
from .strategies.choice import strategy_of

logger = logging.get_logger(__name__)


if TYPE_CHECKING:
    _Base = Trainer  # whatever Trainer comes after it
else:
    _Base = object


class ReLossMixin(_Base):
    """What makes any Trainer one that trains on a surrogate of the metric: `class Mine(ReLossMixin, SFTTrainer)`.

    Everything that the Trainer does it does: accumulation, several processes, mixed precision, evaluation, checkpoints.
    The loss of a batch is the surrogate's of its predictions; a step's is that of all its examples, in all processes.
    `loss/surrogate` and `loss/model` are logged apart, and `eval_alignment` says in every evaluation how well the loss
    ranks as its metric does. What a model puts out as `auxiliary_loss`, a scalar, is added to it: the part of its loss
    that no surrogate is for, such as that of a length that it predicts.

    `eval_loss` is what early stopping, plateau schedulers and scripts that report perplexity take it for: where the
    loss changes during the run, and for models that write text, it is the model's own loss, and the surrogate's is
    `eval_loss/surrogate`. With a given surrogate it is that surrogate's.

    Args:
        model, args, trainer_args, trainer_options: as for the Trainer.
        surrogate, metric, guard, guard_dataset: as for `ReLossTrainer`.

    Attributes:
        strategy: the way to train.
        surrogate: the loss, where it is a surrogate and there is one by now.
        metric: which it is to be aligned with, once that is known.
        model_loss_share: of the model's own loss in the sum, 0 to 1.
        decision: a rule that `tune_decision` has found, if it is not in the model itself.
    """

    # The loss is a mean over the batch: Trainer divides it by the steps of accumulation, and DDP by the processes.
    loss_is_scaled_for_ga = False
    model: nn.Module
    resumed_from: Path | None
    _default_arguments: ClassVar[type[TrainingArguments] | None] = None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *trainer_args: Any,
        surrogate: Any = "auto",
        metric: Metric | Any = None,
        guard: bool | str = True,
        guard_dataset: Any = None,
        **trainer_options: Any,
    ):
        check_kinds(self, model)
        if args is None:
            if self._default_arguments is None:
                raise ValueError(f"{type(self).__name__} wants args=, the arguments of the Trainer that it extends.")
            args = self._default_arguments(output_dir="tmp_trainer")
        self.strategy: LossStrategy = strategy_of(surrogate, metric)
        check(args)
        self.strategy.check(args)
        launched_processes = int(os.environ.get("WORLD_SIZE") or 1)
        if launched_processes > args.world_size and not option(args, "adapt_children"):
            logger.warning(
                f"{launched_processes} processes were launched, but each of them trains a model of its own: on a "
                "machine without accelerators pass --use_cpu (use_cpu=True), so that they train one together."
            )
        if guard not in (True, False, "strict"):
            raise ValueError(f"guard= is True, False or 'strict', but got {guard!r}.")
        if (guard == "strict" or guard_dataset is not None) and not self.strategy.is_guarded:
            raise ValueError("guard='strict' and guard_dataset= are for surrogate='auto': the guard judges its loss.")
        self.has_best_model, self.resumed_from = False, None
        self.decision: SavedRule | None = None
        self.guard = Guard(self, guard_dataset, guard)
        super().__init__(model, args, *trainer_args, **trainer_options)
        self.model_accepts_loss_kwargs = False  # nothing is normalised by the number of items
        self.step_batches, self.monitor = StepBatches(self), RunMonitor(self)
        self.strategy.prepare(self)
        share = option(args, "model_loss_share")
        self.model_loss_share: float = self.strategy.default_own_share if share is None else share
        self.add_callback(StrategyCallback(self))

    @property
    def surrogate(self) -> Surrogate | None:
        return self.strategy.surrogate

    @property
    def metric(self) -> Metric | None:
        return self.strategy.metric

    @property
    def loss_report(self) -> LossReport | None:
        """What came of the last run with `"auto"`: what was considered, what was chosen, and on what evidence."""
        return self.guard.report

    @property
    def evaluates_own_loss(self) -> bool:
        """Whether `eval_loss` is the model's own loss: the loss changes during the run, or the model writes text."""
        writes = writes_text(self.model) and takes_labels(self.model, self.label_names)
        return self.strategy.evaluates_own_loss() or writes or bool(option(self.args, "surrogate_warmup"))

    @property
    def _has_no_labels(self) -> bool:
        """Whether the loss stays the model's own, for it takes no labels, as where texts are matched with images."""
        return self.strategy.is_guarded and not self.label_names

    @property
    def steps_of_model(self) -> int:
        """How many steps the model has been trained for, as it is now: at the end it may be its best checkpoint."""
        best = self.state.best_global_step if self.has_best_model else None
        return self.state.global_step if best is None else best

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, as `Trainer.train`. A checkpoint brings its surrogate, or what has been recorded for it, with it.

        True resumes from the last checkpoint in `output_dir` that was written to its end.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(output_folder(self.args))
        self.decision = None
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        is_search = (bool(args) and args[0] is not None) or kwargs.get("trial") is not None
        self.guard.start(checkpoint, is_possible=not is_search)
        if self.strategy.is_guarded:
            self.guard.announce()

        def run(checkpoint: Path | None, on_own_loss: bool) -> TrainOutput:
            self.has_best_model = False
            self.resumed_from = checkpoint
            self.monitor.start()
            self.strategy.start(checkpoint)
            if on_own_loss:
                self.strategy.decline()
            if self._has_no_labels:
                self.strategy.does_without("the model is given no labels to compare with (see label_names)")
            output = super(ReLossMixin, self).train(str(checkpoint) if checkpoint else None, *args, **kwargs)
            if self.monitor.failure is not None:
                raise FloatingPointError(self.monitor.failure)
            return output

        with without_bars(self.args.disable_tqdm):
            result = run(checkpoint, False)
            if self.strategy.is_guarded:
                result = self.guard.settle(result, lambda checkpoint: run(checkpoint, True))
                self._tune_at_the_end()
                assert self.guard.report is not None
                self.strategy.tell(self.guard.report.verdict)
        return result

    def _tune_at_the_end(self) -> None:
        """Tunes the decision of a classifier on what the guard judges by, if there is such data and a decision."""
        dataset = self.guard.development()
        kind, metric = self.strategy.kind, self.metric
        if dataset is None or metric is None or kind is None or not (kind.scores_logits or kind.of_values):
            return
        if not option(self.args, "tune_decision"):
            return
        try:
            found, self.decision = tuned_decision(self, dataset, metric)
        except Exception as error:  # too few examples, a metric of something else, one of somebody's own that fails
            logger.info(f"The decision is left as it is: {error!r}")
            return
        self.guard.note(found)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_batches.fetch(batches, device)
        return batches, items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.step_batches.begin()
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self.step_batches.end()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        if self._has_no_labels:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        batch = self.step_batches.batch(model, inputs)
        loss, parts, outputs, evidence = self._mixed_loss(batch)
        self.strategy.after_batch(batch, outputs)
        if batch.training:
            self.monitor.note(loss, parts, evidence, batch.labels)
            if self.compute_loss_func is not None and not hasattr(Trainer, "loss_is_scaled_for_ga"):
                loss = loss / self.current_gradient_accumulation_steps  # older ones leave that to the function
        else:
            if self.evaluates_own_loss and "surrogate" in parts:
                self.monitor.note_evaluated(parts["surrogate"], batch)
                loss = parts["model"]
            self.monitor.keep(batch, outputs)
        # Trainer takes the first of other outputs for the loss, which a model trained on a surrogate need not have.
        outputs = outputs if isinstance(outputs, Mapping) else {"logits": output_tensor(outputs, "logits")}
        return (loss, outputs) if return_outputs else loss

    def _mixed_loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any, Evidence | None]:
        """The loss of a batch, its parts by their names, the model's outputs, and the evidence of a surrogate."""
        share = self.model_loss_share if self.strategy.is_active(batch.training) else 1.0
        parts: dict[str, torch.Tensor] = {}
        outputs: Any = None
        own_loss: Any = 0.0  # a number where nobody asks for it
        if share > 0 or (not batch.training and self.evaluates_own_loss):
            own_loss, outputs = self._own_loss(batch)
            weights = batch.weights  # of CTC the mean is one over examples, of their labels' means
            own_loss = parts["model"] = (weights.of_examples if is_ctc(self.model) else weights.of_parts) * own_loss
        elif not self.strategy.calls_model:
            outputs = self._outputs_for_strategy(batch)
        if share == 1:
            return own_loss, parts, outputs, None
        replaced, outputs, evidence = self.strategy.loss(batch, outputs)
        parts["surrogate"] = replaced
        auxiliary_loss = outputs.get("auxiliary_loss") if isinstance(outputs, Mapping) else None
        if auxiliary_loss is not None:
            replaced = replaced + batch.weights.of_parts * auxiliary_loss.mean()
        return (1 - share) * replaced + share * own_loss, parts, outputs, evidence

    def _own_loss(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        """The model's own loss, or that of `compute_loss_func`: a mean over what counts in the batch; and its outputs.

        Raises:
            ValueError: for a model that puts out no loss.
        """
        model, inputs = batch.model, batch.inputs
        # A compute_loss_func that divides by the number of items gives a mean, too; a model gives one without it.
        items = batch.counts.sum() if self.compute_loss_func is not None else None
        loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True, num_items_in_batch=items)
        if isinstance(outputs, Mapping) and not outputs:  # as of sentence-transformers, whose losses call the model
            outputs = self.model_outputs(model, inputs)
        if loss.numel() > 1 and self.args.n_gpu <= 1:
            raise ValueError(
                f"{type(unwrapped(model)).__name__} puts out no loss of its own: what comes first in its outputs has "
                f"the shape {list(loss.shape)}. Return the loss first, or as 'loss' in a dict, where labels are given; "
                "or pass compute_loss_func=; or train on a given surrogate from the start, which needs no such loss."
            )
        loss = loss.mean()  # of DataParallel, one for each device
        if not loss.isfinite() and not batch.counts.any():
            loss = torch.nan_to_num(loss) * 0.0  # a mean over nothing
        return loss, outputs

    def _outputs_for_strategy(self, batch: Batch) -> Any:
        """What the model puts out where its own loss is not asked for."""
        model, inputs = batch.model, batch.inputs
        if takes_labels(model, self.label_names) and not self.strategy.keeps_labels_from_model():
            return self.model_outputs(model, inputs)
        given = without_labels(model, inputs, self.label_names)
        outputs = self.model_outputs(model, given)
        if batch.training and given is not inputs:  # what listens to forward passes got no labels
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, PredictionRecorder):
                    callback.record(model, outputs, inputs)
        return outputs

    def model_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """What the model, which may be wrapped, puts out for a batch, of which the labels may have been taken out. A
        trainer with batches that are no keywords of its model overrides it."""
        return model(**inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.monitor.parts() | self.strategy.measured()
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        measured: dict[str, float] = {}
        prefix = kwargs.get("metric_key_prefix", "eval")
        if prefix == DECISION:
            return super().evaluation_loop(*args, **kwargs)
        with self.monitor.evaluation(measured):
            output = super().evaluation_loop(*args, **kwargs)
        assert output.metrics is not None
        output.metrics.update({f"{prefix}_{name}": value for name, value in measured.items()})
        return output

    def recorded_evaluation(self, dataset: Any, most: int) -> PredictionRecorder:
        """What the model predicts for a data set, as this process has it.

        Args:
            dataset: as for `predict`.
            most: predictions that are kept.
        """
        recorder = PredictionRecorder(most)
        with self.monitor.recording(recorder):
            super().evaluation_loop(
                self.get_test_dataloader(dataset), "Guard", prediction_loss_only=True, metric_key_prefix="guard"
            )
        return recorder

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        loss, outputs, labels = super().prediction_step(*args, **kwargs)
        if not isinstance(self.decision, DecisionRule) or outputs is None:
            return loss, outputs, labels
        if isinstance(outputs, tuple):  # of a model that puts out more than logits, which come first
            return loss, (self.decision.scores(outputs[0]), *outputs[1:]), labels
        return loss, self.decision.scores(outputs), labels

    def tune_decision(self, dataset: Any = None, metric: Metric | Any = None) -> TunedDecision:
        """Tunes how the model's logits become decisions, by the metric; nothing is trained, and each model can have it.

        A number for each class is added to its logit. It goes into the bias of the last layer, so that `pipeline`,
        exports and servers have it; where there is none, the rule is saved with the model as `decision.json`, see
        `DecisionRule.load`. It is kept only if it gains on examples that it was not fitted on.

        Args:
            dataset: examples that the model has not been trained on, nor is judged by; by default `eval_dataset`.
            metric: what `load_metric` takes; by default that of the run.

        Raises:
            ValueError: without data or a metric, for a model that is no classifier, or fewer than 50 examples.
        """
        dataset, metric = judged_by(self, dataset, metric)
        self.decision = None  # which would decide already
        found, self.decision = tuned_decision(self, dataset, metric)
        self.strategy.tell(str(found))
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as `Trainer.save_model` does and, in the folder `surrogate` within, the surrogate."""
        folder = Path(output_dir) if output_dir else output_folder(self.args)
        if self.args.should_save:
            self.strategy.save(folder)
            if self.decision is not None:
                self.decision.save(folder)
        is_checkpoint = folder.name == f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if is_checkpoint:
            self.strategy.save_state(folder)
            self.guard.save_state(folder)
        super().save_model(output_dir, _internal_call)
        if is_checkpoint:
            self.accelerator.wait_for_everyone()  # the trainer's state, which makes a checkpoint whole, comes later

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model's page, as `Trainer.create_model_card`, which also says on which loss it was trained."""
        history = self.state.log_history
        self.state.log_history = _even(history)
        try:
            super().create_model_card(*args, **kwargs)
        finally:
            self.state.log_history = history
        if self.is_world_process_zero():
            none = LossDescription("no loss but its own")
            described = self.strategy.describe() if self.strategy.has_trained_model() else none
            write_loss(
                output_folder(self.args),
                described.surrogate,
                sentence=described.sentence,
                paper=described.paper,
                own_share=self.model_loss_share,
                of_transformers=isinstance(self.accelerator.unwrap_model(self.model), PushToHubMixin),
            )


def _even(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log with the same keys in each evaluation, as the table of a page wants it."""
    keys = dict.fromkeys(key for entry in log_history if "eval_loss" in entry for key in entry)
    return [{key: entry.get(key, "No log") for key in keys} if "eval_loss" in entry else entry for entry in log_history]
