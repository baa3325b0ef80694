"""ReLossTrainer and ReLossSeq2SeqTrainer: Trainers whose loss is a learned surrogate of the metric."""

import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    Seq2SeqTrainer,
    Trainer,
    TrainingArguments,
)
from transformers.utils import PushToHubMixin, logging

from ..adaptive_loss.children import launched
from ..adaptive_loss.controller import LossController
from ..hub.trained_models import write_loss
from ..learning.checkpoints import last_whole_checkpoint
from ..losses.base import Evidence, gathered_evidence
from ..metrics import Metric, load_metric, metric_of
from ..predictions.models import batch_labels, unwrapped, writes_text
from ..predictions.recorder import PredictionRecorder
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate, output_tensor
from .adaptation import AdaptsLoss
from .arguments import (
    FEWEST_TO_LEARN,
    ReLossSeq2SeqTrainingArguments,
    ReLossTrainingArguments,
    check,
    model_share,
    option,
)
from .auto_learning import SURROGATE_FOLDER, LearnsSurrogate, SwitchCallback
from .given import given_surrogate
from .minimum_risk import MinimumRisk
from .monitor import WatchesRun
from .step_weights import GlobalBatches, which_count

logger = logging.get_logger(__name__)

WORDS = ("auto", "approximation", "ala", "minimum_risk")
"""What `surrogate=` may be beside a surrogate."""


class ReLossMixin(GlobalBatches, WatchesRun, LearnsSurrogate):
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
        model, args, trainer_options: as for the Trainer; `args` may be `ReLossTrainingArguments` or
            `ReLossSeq2SeqTrainingArguments`. Texts are decoded with the tokenizer, `processing_class`.
        surrogate: the loss. A `Surrogate` (which is frozen), a folder or Hub id of one, or one of these words:
            `"auto"`: the first stretch of a run is on the model's own loss, its predictions are recorded, a surrogate
            is learned from them, and the rest is trained on that; see `LearnsSurrogate` for what happens where that
            fails. It is saved in the folder `surrogate` of every checkpoint and of the final model. Each call of
            `train` learns its own. A model that writes text keeps half of its own loss (`model_loss_share`).
            `"approximation"`: likewise, but what is learned is a network of sets that regresses the metric, in turn
            with the model (Grabocka et al. 2019): again after every `refresh_steps`, by default as many as the first
            stretch has.
            `"ala"`: a controller adapts it, see `AdaptiveLossTrainer`.
            `"minimum_risk"`: the expected risk by the metric of texts that the model, an encoder-decoder, writes in
                training; in evaluation the model's own loss. See `hf_reloss.training.minimum_risk`.
            The name of a hand-made loss, see `hf_reloss.losses`; those that weigh classes count the labels of
            `train_dataset`.
        metric: what `"auto"` learns: a key of what `compute_metrics` returns (with or without `eval_`), a name or
            whatever else `load_metric` takes. Of a name that `compute_metrics` gives too, the user's own function
            counts. Of `"minimum_risk"`: what
            the risk is measured by. Of a given surrogate: the metric that it is watched for, by default its own.

    Raises:
        ValueError: for label smoothing of a loss that has no share, `"auto"` without a metric, or something that is no
            surrogate.
    """

    # The loss is a mean over the batch: Trainer divides it by the steps of accumulation, and DDP by the processes.
    loss_is_scaled_for_ga = False
    _validation_dataset: Any = None
    _adapted_loss: Surrogate | None = None
    adaptation: AdaptsLoss | None = None
    """What changes the loss while it is trained on, if something does."""
    minimum_risk: MinimumRisk | None = None
    """What is the loss in training in place of a surrogate, if it is."""
    _default_arguments: ClassVar[type[TrainingArguments] | None] = None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *trainer_args: Any,
        surrogate: Surrogate | str | Path = "auto",
        metric: Metric | Any = None,
        **trainer_options: Any,
    ):
        if args is None:
            if self._default_arguments is None:
                raise ValueError(f"{type(self).__name__} wants args=, the arguments of the Trainer that it extends.")
            args = self._default_arguments(output_dir="tmp_trainer")
        self._approximates = surrogate == "approximation"
        learns = self._approximates or surrogate == "auto"
        adapts = isinstance(surrogate, LossController) or surrogate == "ala"
        draws = surrogate == "minimum_risk"
        if learns and isinstance(metric, str):
            metric = metric.removeprefix("eval_")
        check(args, learns, adapts, draws, metric, self._adapted_loss is not None)
        launched_processes = int(os.environ.get("WORLD_SIZE") or 1)
        if launched_processes > args.world_size and not option(args, "adapt_children"):
            logger.warning(
                f"{launched_processes} processes were launched, but each of them trains a model of its own: on a "
                "machine without accelerators pass --use_cpu (use_cpu=True), so that they train one together."
            )
        super().__init__(model, args, *trainer_args, **trainer_options)
        self.model_accepts_loss_kwargs = False  # nothing is normalised by the number of items
        self.surrogate: Surrogate | None = None
        if not (learns or adapts or draws):
            surrogate = given_surrogate(surrogate, self.model, self.train_dataset, args.label_names, WORDS)
            self.surrogate = self._placed(surrogate)
        self.recorder: PredictionRecorder | None = None
        self.metric: Metric | None = None
        self._wanted_metric = metric
        self._has_best_model = False
        of_text = learns and not self._approximates and writes_text(self.model)
        self.model_loss_share = model_share(args, by_default=0.5 if of_text else 0.0)
        if learns:
            if self.compute_metrics is None or not isinstance(metric, str):
                self._wanted_metric = load_metric(metric)
            self._start_recording()
        elif adapts:
            self.surrogate = self._adapted_loss and self._placed(self._adapted_loss)
            self.watched_metric = load_metric(metric)
            controller = None if surrogate == "ala" else surrogate
            steps = option(args, "adapt_steps")
            validation = self.eval_dataset if self._validation_dataset is None else self._validation_dataset
            children = launched() if option(args, "adapt_children") else None
            self.adaptation = AdaptsLoss(self, controller, self.watched_metric, validation, steps, children)
            self.add_callback(self.adaptation)
        elif draws:
            knobs = (option(args, f"risk_{name}") for name in ("candidates", "alpha", "reference"))
            self.minimum_risk = MinimumRisk(self, metric, *knobs)
        else:
            self.watched_metric = metric_of(surrogate.config.metric) if metric is None else _watched(metric)
        self.add_callback(SwitchCallback(self))

    @property
    def warmup_steps(self) -> int:
        """Steps on the model's own loss before the surrogate takes over; with "auto" enough to learn it from."""
        warmup = option(self.args, "surrogate_warmup")
        if warmup is None:
            of_classes = self.adaptation is not None and self._adapted_loss is None
            warmup = 0.1 if self.recorder is not None else 0.0
            if of_classes or self._is_of_groups:
                warmup = 0.5
        steps = int(warmup if warmup >= 1 else round(warmup * self.state.max_steps))
        if self.recorder is None:
            return steps
        examples_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self.learning.first_step + max(steps, math.ceil(FEWEST_TO_LEARN / examples_per_step))

    @property
    def evaluates_own_loss(self) -> bool:
        """Whether `eval_loss` is the model's own loss: the loss changes during the run, or the model writes text.

        A loss that is adapted from the start of the run on may be that of a model that has none of its own.
        """
        adapts = self.adaptation is not None and self._adapted_loss is None
        changes = adapts or self.recorder is not None or self.minimum_risk is not None
        writes = writes_text(self.model) and self._takes_labels(self.model)
        return changes or writes or bool(option(self.args, "surrogate_warmup"))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """Trains, as `Trainer.train`. A checkpoint brings its surrogate, or what has been recorded for it, with it.

        True resumes from the last checkpoint in `output_dir` that was written to its end.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        self._has_best_model = False
        if self.recorder is not None:
            self._start_recording()
            if isinstance(resume_from_checkpoint, str | Path):
                self._resume_recording(Path(resume_from_checkpoint))
        if self.adaptation is not None:
            self.adaptation.start()
            if isinstance(resume_from_checkpoint, str | Path):
                self.adaptation.load(Path(resume_from_checkpoint))
        given = self.recorder is None and self.minimum_risk is None
        if given and isinstance(resume_from_checkpoint, str | Path):
            self._resume_surrogate(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _resume_surrogate(self, checkpoint: Path) -> None:
        """Goes on with the weights that a checkpoint was trained on, whatever its repository holds by now."""
        folder = checkpoint / SURROGATE_FOLDER
        if self.adaptation is not None:
            self.surrogate = self._placed(AutoSurrogate.from_pretrained(folder))
            return
        origin = self.surrogate.config.origin
        if origin is None or not folder.is_dir():
            return
        former = AutoSurrogate.from_pretrained(folder)
        if (former.config.origin or "").rpartition("@")[0] != origin.rpartition("@")[0]:
            had = former.config.origin or f"a surrogate for {former.config.metric}"
            logger.warning(f"{checkpoint} was trained on {had}: the run goes on with {origin}, which was asked for.")
            return
        if former.config.origin != origin:
            logger.info(f"Going on with {former.config.origin}, on which {checkpoint} was trained, not {origin}.")
        self.surrogate = self._placed(former)

    def _take_surrogate_of(self, checkpoint: Path) -> None:
        """After a run has loaded its best checkpoint: the loss is the one on which that model was trained."""
        self._has_best_model, folder = True, checkpoint / SURROGATE_FOLDER
        if self.adaptation is not None or (self.recorder is not None and self.surrogate is not None):
            had_one = self._steps_of_model() > self._switched_at()
            self.surrogate = self._placed(AutoSurrogate.from_pretrained(folder)) if had_one else None
        if self._steps_of_model() <= self._switched_at():
            self._tell(f"The best checkpoint, {checkpoint.name}, is of a model that was trained on its own loss alone.")

    def _steps_of_model(self) -> int:
        """How many steps the model has been trained for, as it is now."""
        return self.state.best_global_step if self._has_best_model else self.state.global_step

    def _switched_at(self) -> float:
        """The step after which the loss is another one than the model's own; infinite if it never was."""
        if self.recorder is None:
            return self.warmup_steps
        return math.inf if self.learning.switched_at is None else self.learning.switched_at

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model's page, as `Trainer.create_model_card`, which also says on which loss it was trained."""
        history = self.state.log_history
        self.state.log_history = _even(history)
        try:
            super().create_model_card(*args, **kwargs)
        finally:
            self.state.log_history = history
        if self.is_world_process_zero():
            has_switched = self._steps_of_model() > self._switched_at()
            write_loss(
                self.args.output_dir,
                self.surrogate.facts() if has_switched and self.surrogate is not None else None,
                risk=self.minimum_risk.risk.metric.signature if self.minimum_risk and has_switched else None,
                own_share=self.model_loss_share,
                of_transformers=isinstance(self.accelerator.unwrap_model(self.model), PushToHubMixin),
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = self._labels(inputs)
        share = self.model_loss_share
        warming_up = self.recorder is None and self.state.global_step < self.warmup_steps
        draws = self.minimum_risk is not None and model.training
        if warming_up or (self.surrogate is None and not draws):
            share = 1.0
        reports_own = not model.training and self.evaluates_own_loss
        withheld = share == 0 and not draws and not reports_own and self.surrogate.task == "tokens"
        parts, evidence, given = {}, None, inputs
        if share > 0 or reports_own:
            own_loss, outputs = self._own_loss(model, inputs, labels)
            own_loss = parts["model"] = self.share[0] * own_loss
        elif draws:
            own_loss = 0.0
        else:
            given = self._without_labels(model, inputs) if withheld or not self._takes_labels(model) else inputs
            own_loss, outputs = 0.0, self.model_outputs(model, given)
        loss = own_loss
        if share < 1:
            if draws:
                risk, outputs = self.minimum_risk(model, inputs, labels)
                replaced = self.share[2] * risk
            else:
                evidence = self._evidence(model, outputs, labels)
                of_groups = model.training and self.surrogate.network.is_of_groups()
                replaced = self.share[of_groups] * self.surrogate(evidence)
            parts["surrogate"] = replaced
            auxiliary_loss = outputs.get("auxiliary_loss") if isinstance(outputs, Mapping) else None
            if auxiliary_loss is not None:
                replaced = replaced + self.share[0] * auxiliary_loss.mean()
            loss = (1 - share) * replaced + share * own_loss
        if not model.training:
            if reports_own and "surrogate" in parts:
                self._note_evaluated(parts["surrogate"], labels)
            loss = own_loss if reports_own else loss
            self._keep_evaluated(outputs, labels, inputs)
        else:
            self._watch(loss, parts, evidence)
            if self.recorder is not None:
                self._find_metric(outputs, labels, inputs)
            if self._is_recording and not self.is_padding:
                self.recorder.add(outputs, labels, *self._beside(outputs, inputs))
            if given is not inputs:  # with the labels, what hears a model's forward passes has gone without them
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, PredictionRecorder):
                        callback.record(model, outputs, inputs)
        # Trainer takes the first of other outputs for the loss, which a model trained on a surrogate need not have.
        outputs = outputs if isinstance(outputs, Mapping) else {"logits": output_tensor(outputs, "logits")}
        return (loss, outputs) if return_outputs else loss

    def model_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """What the model puts out for a batch. A trainer with batches that are no keywords of its model overrides it.

        Args:
            model: the model, which may be wrapped.
            inputs: the batch, of which the labels may have been taken out.
        """
        return model(**inputs)

    def _own_loss(self, model: nn.Module, inputs: dict[str, Any], labels: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The model's own loss, or that of `compute_loss_func`: a mean over what counts in the batch; and its outputs.

        Raises:
            ValueError: for a model that puts out no loss.
        """
        # A compute_loss_func that divides by the number of items gives a mean, too; a model gives one without it.
        items = which_count(labels).sum() if self.compute_loss_func is not None else None
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
        if not loss.isfinite() and not which_count(labels).any():
            loss = torch.nan_to_num(loss) * 0.0  # a mean over nothing
        return loss, outputs

    def _evidence(self, model: nn.Module, outputs: Any, labels: torch.Tensor) -> Evidence:
        """What the surrogate sees; in training, one of groups sees the micro-batch of all processes."""
        with torch.autocast(self.args.device.type, enabled=False):
            evidence = self.surrogate.evidence(outputs, labels)
            if evidence.counts.dim() != self.surrogate.network.count_dims:
                one = "one label per example" if self.surrogate.network.count_dims == 1 else "many labels per example"
                raise ValueError(
                    f"This surrogate, for {self.surrogate.task}, reads {one}, but a batch has labels "
                    f"{list(labels.shape)}. Pass one for the model's task: of a tagger or a model that writes text "
                    "that is SurrogateForTokens.for_metric(...), 'auto' or a loss such as 'focal'."
                )
            if not model.training or not self.surrogate.network.is_of_groups():
                return evidence
            if self.is_padding:
                evidence = evidence._replace(counts=torch.zeros_like(evidence.counts))
            return gathered_evidence(evidence)

    def _takes_labels(self, model: nn.Module) -> bool:
        """Whether the model's `forward` has parameters for the labels, which it need not have."""
        parameters = inspect.signature(unwrapped(model).forward).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return takes_any or all(name in parameters for name in self.label_names)

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

    def _labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        labels = batch_labels(self.model, inputs, self.label_names)
        if labels is None:
            raise ValueError(
                f"A surrogate wants labels, but label_names is {self.label_names} and the batch has {sorted(inputs)}: "
                "check the data set's columns, or set label_names in TrainingArguments."
            )
        return labels

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model as `Trainer.save_model` does and, in the folder `surrogate` within, the surrogate."""
        if self.surrogate is not None and self.args.should_save:
            folder = Path(output_dir or self.args.output_dir) / SURROGATE_FOLDER
            PreTrainedModel.save_pretrained(self.surrogate, folder)
            if self.adaptation is not None:
                self.adaptation.controller.save_pretrained(folder.with_name("controller"))
        super().save_model(output_dir, _internal_call)

    def _save_rng_state(self, output_dir: str) -> None:
        # As random states, what each process has recorded is needed to go on as if nothing had happened.
        super()._save_rng_state(output_dir)
        if self.recorder is not None:
            self._save_learning(Path(output_dir))
        if self.adaptation is not None and self.args.should_save:
            self.adaptation.save(Path(output_dir))
        self.accelerator.wait_for_everyone()  # after this a checkpoint counts as whole


class ReLossTrainer(ReLossMixin, Trainer):
    __doc__ = f"""A Trainer that trains on a surrogate of the metric.
{ReLossMixin.__doc__.partition("SFTTrainer)`.")[2]}
    Example:
        >>> ReLossTrainer(model, args, train_dataset=data, surrogate="someone/reloss-accuracy")  # doctest: +SKIP
    """
    _default_arguments = ReLossTrainingArguments


class ReLossSeq2SeqTrainer(ReLossMixin, Seq2SeqTrainer):
    __doc__ = f"""A Seq2SeqTrainer that trains on a surrogate of the metric: `ReLossTrainer` for models that write text.

    With `predict_with_generate` it evaluates what the model generates. Under several processes each example is scored
    once, also where the last batch was filled up.
{ReLossMixin.__doc__.partition("SFTTrainer)`.")[2]}
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


def _even(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log with the same keys in each evaluation, as the table of a page wants it."""
    keys = dict.fromkeys(key for entry in log_history if "eval_loss" in entry for key in entry)
    return [{key: entry.get(key, "No log") for key in keys} if "eval_loss" in entry else entry for entry in log_history]


def _watched(metric: Any) -> Metric:
    """The metric that a given surrogate is watched for."""
    try:
        return load_metric(metric)
    except ValueError as error:
        raise ValueError(
            "With a given surrogate, metric= is what its alignment is watched for: a name, a function or a Metric, and "
            f"no key of compute_metrics. {error}"
        ) from None
