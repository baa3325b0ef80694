"""The protocol of a way to train, and what all of those have in common whose loss is a surrogate."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from logging import INFO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments
from transformers.utils import logging

from ...distributed import own_rows
from ...hub.facts import SurrogateFacts
from ...losses.base import Evidence, gathered_evidence
from ...metrics import Metric
from ...predictions.dataset import text_decoder
from ...progress import without_bars
from ...surrogates.auto import AutoSurrogate
from ...surrogates.base import Surrogate
from ..arguments import SURROGATE_LOSS, check_smoothing, option
from ..batch import Batch

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.get_logger(__name__)

SURROGATE_FOLDER = "surrogate"
"""Where a checkpoint, and the folder of a trained model, keeps the surrogate."""


class StrategyLoss(NamedTuple):
    """What a strategy puts in place of the model's own loss.

    Attributes:
        loss: a scalar, weighed as in the sum over the micro-batches and processes of a step.
        outputs: what the model has put out.
        evidence: what a surrogate has seen of it; None if it was no surrogate.
    """

    loss: torch.Tensor
    outputs: Any
    evidence: Evidence | None = None


@dataclass(frozen=True)
class LossDescription:
    """What a log line, an error and the page of a trained model say of a loss.

    Attributes:
        name: in a line, such as "the surrogate for f1".
        surrogate: what there is to say of it, if it is one.
        sentence: what a page says of one that is none, after "This model was trained with `hf_reloss` ".
        paper: what the page links for it: the method's name and an address.
    """

    name: str
    surrogate: SurrogateFacts | None = None
    sentence: str = ""
    paper: tuple[str, str] | None = None


def read_evidence(surrogate: Surrogate, outputs: Any, labels: torch.Tensor) -> Evidence:
    """What a surrogate sees of a batch.

    Raises:
        ValueError: where it cannot read that, or is for another number of labels per example.
    """
    evidence = surrogate.evidence(outputs, labels)
    if evidence.counts.dim() != surrogate.network.count_dims:
        one = "one label per example" if surrogate.network.count_dims == 1 else "many labels per example"
        raise ValueError(
            f"This surrogate, for {surrogate.task}, reads {one}, but a batch has labels {list(labels.shape)}. "
            "Pass one for the model's task: of a tagger or a model that writes text that is "
            "SurrogateForTokens.for_metric(...), 'auto' or a loss such as 'focal'."
        )
    return evidence


class LossStrategy(ABC):
    """A way to train: `ReLossTrainer(..., surrogate=STRATEGY)`, or its word.

    One object is for one trainer, and each call of `train` is a run of its own. The trainer calls, in this order:
    `check` before its own `__init__`, `prepare` after it; `start` and `begin` for each run, then `loss` and
    `after_batch` for each micro-batch, `end_step` after each step, `save` and `save_state` for checkpoints, `end` at
    the end of the run. As long as `is_active` is False the loss is the model's own, and `loss` is not called.

    A subclass is found by its `word` as soon as it is defined, in this package or elsewhere.

    Args:
        metric: what the run is for, as `load_metric` takes it; what None means is the strategy's business.

    Attributes:
        trainer: which trains by it, once it is prepared.
        surrogate: the loss, where it is one and there is one by now.
        metric: which the loss is to be aligned with, once that is known.
    """

    word: ClassVar[str] = ""
    """What `surrogate=` is, to ask for it; empty where it is no word."""
    citation: ClassVar[str] = ""
    """Where it comes from."""
    changes_loss: ClassVar[bool] = True
    """Whether another loss than at the start is trained on later: `eval_loss` is the model's own then."""
    options: ClassVar[tuple[str, ...]] = ()
    """Of the training arguments, those that other strategies refuse."""
    is_guarded: ClassVar[bool] = False
    """Whether the guard judges its loss by the metric, and the decision is tuned at the end of a run."""
    calls_model: bool = False
    """Whether `loss` calls the model itself, and `outputs` are None where nothing else wanted them."""
    defined: ClassVar[dict[str, type["LossStrategy"]]] = {}
    """All strategies that there are by now, by their words."""

    trainer: Any
    surrogate: Surrogate | None = None
    metric: Metric | None = None

    own_loss_because: str = ""
    """Of one that is guarded: why the loss has stayed the model's own."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if vars(cls).get("word"):
            LossStrategy.defined[cls.word] = cls

    def __init__(self, metric: Metric | Any = None):
        self.wanted_metric = metric

    @classmethod
    def of(cls, surrogate: Any, metric: Metric | Any) -> "Self | None":
        """The strategy for what a trainer was given as `surrogate=` and `metric=`; None if that is not for it."""
        return cls(metric) if isinstance(surrogate, str) and surrogate == cls.word else None

    def check(self, args: TrainingArguments) -> None:
        """Refuses arguments that contradict it.

        Raises:
            ValueError: for these.
        """
        if not self.is_guarded:  # one that is begins on the model's own loss, and may stay with it
            check_smoothing(args, self.default_own_share)
        if option(args, "adapt_children") and "adapt_children" not in self.options:
            raise ValueError("adapt_children=True is for surrogate='ala', whose controller the children share.")
        steps = option(args, "refresh_steps")
        if steps is not None and (steps < 1 or "refresh_steps" not in self.options):
            raise ValueError(
                f"refresh_steps={steps} is after how many steps surrogate='auto' learns again, 1 or more; a given "
                "surrogate stays as it is."
            )
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        if best == SURROGATE_LOSS and (self.changes_loss or args.greater_is_better):
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} is the loss of a given surrogate in evaluation, "
                "and less is better: pass greater_is_better=False, and a surrogate that stays what it is through the "
                "run."
            )

    def prepare(self, trainer: Any) -> None:
        """The trainer has been made.

        Raises:
            ValueError: for a model, data or metric that it cannot train with.
        """
        self.trainer = trainer

    def start(self, checkpoint: Path | None) -> None:  # noqa: B027
        """A run starts: anew, whatever the run before has left, or from a checkpoint."""

    def begin(self) -> None:  # noqa: B027
        """The run's steps are known, and the first is about to come."""

    def is_active(self, training: bool) -> bool:
        """Whether its loss is in place now, in training or in evaluation; if not, the loss is the model's own."""
        return self.trainer.state.global_step >= self.warmup_steps

    @abstractmethod
    def loss(self, batch: Batch, outputs: Any) -> StrategyLoss:
        """The loss of a micro-batch.

        Args:
            batch: the micro-batch.
            outputs: of the model.
        """

    def after_batch(self, batch: Batch, outputs: Any) -> None:  # noqa: B027
        """The loss of a micro-batch has been taken, in training or in evaluation."""

    def does_without(self, why: str) -> None:
        """A batch has labels or outputs that no surrogate reads: goes on with the model's own loss, or refuses them.

        Args:
            why: what was given, what is wanted and what to do.

        Raises:
            ValueError: here, where the loss was asked for.
        """
        raise ValueError(why)

    def end_step(self) -> None:  # noqa: B027
        """A step has been made."""

    def measured(self) -> dict[str, float]:
        """What the log says beside the loss, of the steps since it was last asked."""
        return {}

    def end(self, best_checkpoint: Path | None) -> None:
        """The run is over, and the model is that of its best checkpoint, if there is one."""
        if best_checkpoint is not None and self.switched_at < math.inf and not self.has_trained_model():
            self.tell(
                f"The best checkpoint, {best_checkpoint.name}, is of a model that was trained on its own loss alone."
            )

    def save(self, folder: Path) -> None:  # noqa: B027
        """The model is saved in a folder, which what belongs to it is put into. One process of all calls it."""

    def save_state(self, checkpoint: Path) -> None:  # noqa: B027
        """A checkpoint is written, which what is needed to go on is put into. All processes call it."""

    def decline(self) -> None:
        """Of one that is guarded: stays with the model's own loss to the end of the run."""
        raise NotImplementedError

    @property
    def learned(self) -> Any:
        """Of one that is guarded: what has come of the run so far, which can be set again."""
        raise NotImplementedError

    @property
    def metric_name(self) -> str:
        """The metric's name or, as long as that is not known, what was asked for."""
        return str(self.wanted_metric) if self.metric is None else self.metric.name

    @property
    def loss_name(self) -> str:
        """Its loss, as a report has it."""
        return self.describe().name

    @abstractmethod
    def describe(self) -> LossDescription:
        """What there is to say of its loss."""

    @property
    def default_warmup(self) -> float:
        """What `surrogate_warmup` is by default."""
        return 0.0

    @property
    def default_own_share(self) -> float:
        """What `model_loss_share` is by default."""
        return 0.0

    @property
    def warmup_steps(self) -> int:
        """Steps on the model's own loss before its own takes over."""
        warmup = option(self.trainer.args, "surrogate_warmup")
        if warmup is None:
            warmup = self.default_warmup
        return int(warmup if warmup >= 1 else round(warmup * self.trainer.state.max_steps))

    @property
    def switched_at(self) -> float:
        """The step after which the loss is its own; infinite if it never was."""
        return self.warmup_steps

    def has_trained_model(self) -> bool:
        """Whether the model, as it is now, has been trained on its loss at all."""
        return self.trainer.steps_of_model > self.switched_at

    def evaluates_own_loss(self) -> bool:
        """Whether `eval_loss` is the model's own loss."""
        return self.changes_loss

    def keeps_labels_from_model(self) -> bool:
        """Whether the model is spared its own loss where nobody asks for it."""
        return False

    @property
    def kind(self) -> type[Surrogate] | None:
        """How the predictions of an evaluation are read; None for what their names and shapes say."""
        return None if self.surrogate is None else type(self.surrogate)

    def watches(self) -> bool:
        """Whether evaluations measure how well the loss ranks as the metric does."""
        return self.surrogate is not None and self.metric is not None

    def beside(self, batch: Batch, outputs: Any) -> tuple[float, Mapping[str, Any], dict[str, Any] | None]:
        """What is recorded of a batch beside outputs and labels: stage, inputs, further columns."""
        state = self.trainer.state
        return state.global_step / max(state.max_steps, 1), batch.inputs, None

    def decoder(self, kind: type[Surrogate], metric: Metric) -> Any:
        """What decodes the token ids that a surrogate of a kind records, or None if the metric compares classes."""
        trainer = self.trainer
        return text_decoder(trainer.model, kind, metric, trainer.processing_class, trainer.data_collator)

    def tell(self, event: str) -> None:
        """Says in a line what has happened: into the log or, if that is quiet, above the progress bar or, where there
        is none, between what is printed in its place."""
        trainer = self.trainer
        if logger.isEnabledFor(INFO):
            logger.info(event)
        elif not trainer.is_world_process_zero():
            return
        elif not trainer.args.disable_tqdm:
            tqdm.write(event, file=sys.stderr)
        elif any(isinstance(each, PrinterCallback) for each in trainer.callback_handler.callbacks):
            print(event, flush=True)

    def announce_warmup(self) -> None:
        """Says at the start of a run how long its warm-up is."""
        state, steps = self.trainer.state, self.warmup_steps
        if state.global_step < steps < state.max_steps:
            self.tell(f"The model's own loss is the loss until step {steps}, for a warm-up.")

    def announce_switch(self) -> None:
        """Says at the end of the warm-up that the loss is another one from here on."""
        step = self.trainer.state.global_step
        if step == self.warmup_steps:
            self.tell(f"The warm-up is over: switched at step {step} to {self.describe().name}.")

    def log(self, values: dict[str, float]) -> None:
        """Puts values into the trainer's log, between its own."""
        logs_next = self.trainer.control.should_log  # which logging this would take back
        self.trainer.log(values)
        self.trainer.control.should_log = logs_next


class SurrogateStrategy(LossStrategy):
    """A way to train whose loss is a surrogate."""

    def is_active(self, training: bool) -> bool:
        return self.surrogate is not None and super().is_active(training)

    def loss(self, batch: Batch, outputs: Any) -> StrategyLoss:
        surrogate, evidence = self._in_place(), self.evidence(batch, outputs)
        of_group = surrogate.network.is_of_groups()
        weight = batch.weights.of_group if of_group else batch.weights.of_parts
        return StrategyLoss(weight * surrogate(evidence), outputs, evidence)

    def _in_place(self) -> Surrogate:
        """The surrogate, where it is the loss."""
        assert self.surrogate is not None
        return self.surrogate

    def evidence(self, batch: Batch, outputs: Any) -> Evidence:
        """What the surrogate sees; one of groups sees the micro-batch of all processes."""
        surrogate, labels = self._in_place(), batch.labels
        with torch.autocast(self.trainer.args.device.type, enabled=False):
            evidence = read_evidence(surrogate, outputs, labels)
            if not surrogate.network.is_of_groups():
                return evidence
            if batch.is_padding:
                evidence = evidence._replace(counts=torch.zeros_like(evidence.counts))
            elif not batch.training:  # of training, what fills the last batch up has been cut off
                own = torch.arange(len(labels), device=labels.device) < own_rows(self.trainer, len(labels))
                counts = evidence.counts & own.view(-1, *[1] * (evidence.counts.dim() - 1))
                evidence = evidence._replace(counts=counts)
            return gathered_evidence(evidence)

    def begin(self) -> None:
        args, surrogate = self.trainer.args, self.surrogate
        if surrogate is not None and surrogate.network.is_of_groups() and args.train_batch_size * args.world_size == 1:
            logger.warning(
                f"The loss {surrogate.config.architecture!r} compares the examples of a group, which is a micro-batch, "
                "but there is one in each, so hardly anything is learned: raise per_device_train_batch_size "
                "(gradient accumulation does not make groups larger)."
            )

    def keeps_labels_from_model(self) -> bool:
        return self._in_place().keeps_labels_from_model

    def save(self, folder: Path) -> None:
        if self.surrogate is not None:
            with without_bars():
                PreTrainedModel.save_pretrained(self.surrogate, folder / SURROGATE_FOLDER)

    def saved_surrogate(self, checkpoint: Path) -> Surrogate:
        """The surrogate that a checkpoint was trained on."""
        return self.placed(AutoSurrogate.from_pretrained(checkpoint / SURROGATE_FOLDER))

    def placed(self, surrogate: Surrogate) -> Surrogate:
        """A surrogate on the device of the run, frozen."""
        return surrogate.to(self.trainer.args.device).freeze()

    @property
    def loss_name(self) -> str:
        is_learned = bool((self._in_place().config.record or {}).get("steps"))
        return f"the {'learned surrogate' if is_learned else 'soft metric'} for {self.metric_name}"

    def describe(self) -> LossDescription:
        if self.surrogate is None:
            return LossDescription("a surrogate")
        config = self.surrogate.config
        return LossDescription(config.origin or f"the surrogate for {config.metric}", self.surrogate.facts())
