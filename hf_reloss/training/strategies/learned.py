"""Learning the surrogate in the run: predictions are recorded, and a surrogate of the metric is learned from them.

Huang et al. 2022, Relational Surrogate Loss Learning, arXiv:2202.13197.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ...distributed import undisturbed
from ...learning.learn_surrogate import learn_surrogate
from ...learning.time_limit import RunClock, Stopwatch, TimeLimit
from ...losses.base import gathered_evidence
from ...metrics import Metric
from ...predictions.models import is_ctc, looks_like_ctc, writes_text
from ...predictions.recorder import PredictionRecorder
from ...surrogates.auto import AutoSurrogate
from ...surrogates.base import Surrogate
from ..arguments import FEWEST_TO_LEARN, FIRST_STRETCH, check_learning, option
from ..batch import Batch
from ..learning_state import LearningState
from ..monitor import DRIFTED
from ..recording import RunRecording, too_few, why_failed, wrong_way_round
from ..wanted_metric import WantedMetric
from .base import SURROGATE_FOLDER, SurrogateStrategy

logger = logging.get_logger(__name__)

FITTED = 0.5
"""The share of predictions that are right before a loss of groups is used: where most are wrong, models lost by it."""

EPOCHS = 5
"""Over the groups, half as many as `SurrogateTrainer` has by default: a run waits for this."""


class Learned(SurrogateStrategy):
    """`"auto"`: the first stretch of a run is on the model's own loss, the rest on a surrogate that is learned from it.

    Learning never ends a run. Where it fails at the end of the first stretch, predictions are recorded for as long
    again, and it is tried once more. Where it fails again, the loss is the soft metric, the surrogate before anything
    is learned, or, of a metric that has none, the model's own; a warning says why. The soft metric is the loss, too,
    where what was learned ranks held-out groups worse than that, or than the usual loss.

    Args:
        metric: a key of what `compute_metrics` returns, or what `load_metric` takes.

    Attributes:
        surrogate: the loss; None as long as it is to be learned.
        recording: of the predictions to learn from.
        state: how far that has come.
        metric: what is learned, once the first batch has shown what it scores.
    """

    word = "auto"
    citation = "Huang et al. 2022, arXiv:2202.13197"
    options = ("refresh_steps",)
    is_guarded = True
    starts_at_soft_metric: ClassVar[bool] = True
    """Whether what is learned is, before that, the soft metric."""

    def __init__(self, metric: Metric | Any = None):
        super().__init__(metric.removeprefix("eval_") if isinstance(metric, str) else metric)

    def check(self, args: TrainingArguments) -> None:
        super().check(args)
        if self.wanted_metric is None:
            raise ValueError(
                "surrogate='auto' learns a surrogate of the metric, so it wants one: metric= a key of what "
                "compute_metrics returns, or a name such as 'accuracy'."
            )
        check_learning(args)

    def prepare(self, trainer: Any) -> None:
        super().prepare(trainer)
        self.wanted = WantedMetric(trainer, self.wanted_metric)
        self.start(None)

    def start(self, checkpoint: Path | None) -> None:
        self.surrogate, self.metric, self._is_of_groups, self.own_loss_because = None, None, False, ""
        self._reads = not is_ctc(self.trainer.model)
        self.wanted.records_evaluation = False
        self.state = LearningState(self.word, self.wanted.signature)
        self.recording = RunRecording(self.trainer)
        if checkpoint is not None:
            self._resume(checkpoint)

    def _resume(self, checkpoint: Path) -> None:
        """Takes the surrogate, or what is recorded for it, from a checkpoint; one of another metric has none."""
        former, wanted = LearningState.load(checkpoint), self.state
        has_surrogate = (checkpoint / SURROGATE_FOLDER).is_dir()
        found = self.recording.load(checkpoint) or former is not None or has_surrogate
        if former is not None and (former.surrogate, former.metric) != (wanted.surrogate, wanted.metric):
            why = f"was trained with surrogate={former.surrogate!r}, metric={former.metric!r}"
        elif not found:
            why = "has no surrogate and no recording for one"
        else:
            self.state = former or wanted
            self.surrogate = self.saved_surrogate(checkpoint) if has_surrogate else None
            return
        self.recording = RunRecording(self.trainer)
        wanted.first_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        logger.warning(f"{checkpoint} {why}: for {wanted.metric} recording starts now.")

    def begin(self) -> None:
        state = self.trainer.state
        self.clock = RunClock(state.global_step)
        super().begin()
        if not self._reads:
            self._stay_on_ctc()
        elif self.is_recording and self.surrogate is None and self.warmup_steps >= state.max_steps:
            self.own_loss_because = f"recording predictions takes {self.warmup_steps} steps of {state.max_steps}"
            logger.warning(
                f"No surrogate will be learned: recording predictions takes {self.warmup_steps} steps, and the run has "
                f"{state.max_steps}. Train for longer, or pass a surrogate that has been learned before."
            )

    @property
    def default_own_share(self) -> float:
        return 0.5 if writes_text(self.trainer.model) else 0.0

    @property
    def default_warmup(self) -> float:
        return max(0.5 if self._is_of_groups else 0.1, FIRST_STRETCH if self.trainer.guard.strict else 0.0)

    @property
    def warmup_steps(self) -> int:
        """Steps on the model's own loss at first; enough to learn from what they predict."""
        args = self.trainer.args
        examples_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return self.state.first_step + max(super().warmup_steps, math.ceil(FEWEST_TO_LEARN / examples_per_step))

    @property
    def refresh_steps(self) -> int | None:
        """After how many steps it is learned again; None for never."""
        return option(self.trainer.args, "refresh_steps")

    @property
    def switched_at(self) -> float:
        return math.inf if self.state.switched_at is None else self.state.switched_at

    @property
    def is_recording(self) -> bool:
        """Whether predictions are recorded: until a surrogate is learned or, if it is to be again, always."""
        return not self.state.gave_up and (self.surrogate is None or self.refresh_steps is not None)

    def is_active(self, training: bool) -> bool:
        return self.surrogate is not None

    @property
    def recorder(self) -> PredictionRecorder:
        return self.recording.recorder

    @property
    def kind(self) -> type[Surrogate] | None:
        return self.recording.kind if self.surrogate is None else type(self.surrogate)

    @property
    def _known_metric(self) -> Metric:
        """The metric, once the first batch has shown what it scores."""
        assert self.metric is not None
        return self.metric

    def watches(self) -> bool:
        return self._reads

    def beside(self, batch: Batch, outputs: Any) -> tuple[float, Mapping[str, Any], dict[str, Any] | None]:
        stage, inputs, _ = super().beside(batch, outputs)
        return stage, inputs, self.wanted.as_evaluated(outputs, inputs) if self.wanted.records_evaluation else None

    def after_batch(self, batch: Batch, outputs: Any) -> None:
        if self.metric is None and self._reads:
            self._find_metric(batch, outputs)
        if batch.training and self.is_recording and not batch.is_padding:
            self.recorder.add(outputs, batch.labels, *self.beside(batch, outputs))

    def _find_metric(self, batch: Batch, outputs: Any) -> None:
        """Finds out what is to be learned, and watched, from the first batch of a run."""
        if looks_like_ctc(outputs, batch.labels):
            return self._stay_on_ctc()
        try:
            kind = self.recorder.kind = AutoSurrogate.reading(outputs, batch.labels)
        except ValueError as error:
            return self.does_without(str(error))
        given = (outputs, batch.labels, batch.inputs)
        metric = self.wanted.find(kind, *given)
        if metric is None:
            return None
        with torch.random.fork_rng(devices=[]):
            surrogate, _ = self.to_learn(kind, metric)
        self._is_of_groups = self.starts_at_soft_metric and surrogate.network.is_of_groups() and not kind.swaps_labels
        if kind.swaps_labels and not self.placed(surrogate)(gathered_evidence(surrogate.evidence(*given[:2]))):
            return self.does_without(f"the first batch has no examples that {metric.name} compares: make it larger")
        self.wanted.try_on(metric, kind, self.decoder(kind, metric), *given)
        self.metric = metric

    def _stay_on_ctc(self) -> None:
        name = getattr(self.wanted.wanted, "name", self.wanted.wanted)
        self.does_without(f"nothing is learned for CTC; surrogate='minimum_risk' trains on the expected {name}")

    def does_without(self, why: str) -> None:
        if not self._reads and self.own_loss_because:
            return
        self._reads, self.state.gave_up, self.own_loss_because = False, True, why.rstrip(".")
        logger.warning(f"The loss is the model's own to the end of the run: {self.own_loss_because}.")

    def to_learn(self, kind: type[Surrogate], metric: Metric) -> tuple[Surrogate, dict[str, Any]]:
        """The surrogate that is to be learned, and the settings of its learning."""
        return kind.for_metric(metric, trust_region=True), {"num_train_epochs": EPOCHS}

    def end_step(self) -> None:
        state = self.trainer.state
        if not self.is_recording or state.global_step >= state.max_steps:  # what is learned last would train nothing
            return
        if self.surrogate is None:
            if state.global_step >= self.warmup_steps:
                self._end_first_stretch()
            return
        since = state.global_step - self.state.switched_at
        if since > 0 and since % self.refresh_steps == 0:
            self.refresh()

    def _end_first_stretch(self) -> None:
        """Learns the surrogate if there is enough to learn from, and no try has failed just now."""
        step, again = self.trainer.state.global_step, self.state.next_try
        if again is not None:
            if step >= again:
                self._learn_or_go_on()
            return
        if (number := self.recording.number()) >= FEWEST_TO_LEARN:
            self._learn_or_go_on()
        elif 2 * step >= self.warmup_steps + self.trainer.state.max_steps:  # in the middle of what is left
            self._go_on_without(too_few(number))

    def _learn_or_go_on(self) -> None:
        """Tries to learn the surrogate; what fails is tried again later, and then given up."""
        step, left = self.trainer.state.global_step, self.trainer.state.max_steps - self.trainer.state.global_step
        watch = Stopwatch()
        try:
            self.learn()
        except Exception as error:  # a metric may be somebody's own, and raise anything
            self.clock.spent += watch.seconds()
            again = step + min(step - self.state.first_step, left // 2)
            if self.state.next_try is None and again > step:
                self.state.next_try = again
                self.tell(
                    f"At step {step} no surrogate of {self._known_metric.name} can be learned yet: {why_failed(error)} "
                    f"Recording goes on until step {again}."
                )
            else:
                self._go_on_without(why_failed(error))

    def learn(self) -> Surrogate:
        """Learns the surrogate from what has been recorded, on all processes together, and goes on with it.

        With judging it takes 5 % of the run or 10 seconds, whichever is more. Goes on with the soft metric if that, or
        the usual loss, ranks held-out groups better than what was learned.

        Raises:
            ValueError, MisalignedSurrogateError: if nothing can be learned.
        """
        args, metric, step = self.trainer.args, self._known_metric, self.trainer.state.global_step
        limit = TimeLimit(self.clock.seconds_to_learn(step, self.trainer.state.max_steps))
        predictions = self.recording.dataset(metric)
        right = self.recording.right_share() if self._is_of_groups else 1.0
        if right < FITTED:
            raise ValueError(
                f"The loss for {metric.name} is that of whole groups, which hardly corrects wrong predictions: it "
                f"wants {FITTED:.0%} of the latest ones to be right with p > 1/2, but {right:.0%} are."
            )
        why = "The warm-up is over" if self.surrogate is None else f"{self.refresh_steps} steps more are recorded"
        self.tell(f"{why} at step {step}: learning a surrogate of {metric.name} from {len(predictions):,} predictions.")
        sizes = self.recording.sizes(metric, predictions, limit)
        with undisturbed():
            learned, settings = self.to_learn(self.recording.known_kind, metric)
        is_first_try = self.surrogate is None and self.state.next_try is None
        at_start = learn_surrogate(
            learned,
            predictions,
            metric,
            folder=Path(args.output_dir),
            limit=limit,
            wants_alignment_at_start=self.starts_at_soft_metric and is_first_try,  # it may rank better at the next
            progress=not args.disable_tqdm,
            seed=args.seed,
            bf16=args.bf16,
            fp16=args.fp16,
            use_cpu=args.use_cpu,
            **settings,
            **sizes,
        )
        self.go_on_with(learned, at_start if self.starts_at_soft_metric else None)
        if self.refresh_steps is not None:
            self.recording.begin_anew()
        return self._in_place()

    def go_on_with(self, learned: Surrogate, soft_metric: Surrogate | None) -> None:
        """Makes the loss what was learned or, where that does not rank better, the soft metric, by their records."""
        record, usual = learned.config.record, f"alignment_{learned.original_loss}"
        chosen, others = learned, {learned.original_loss.replace("_", " "): record[usual]}
        if soft_metric is not None:
            start = soft_metric.config.record["alignment"]
            if not record["alignment"] >= max(start, record[usual]):
                chosen, others = soft_metric, {"the learned surrogate": record["alignment"]} | others
        alignment, step = chosen.config.record["alignment"], self.trainer.state.global_step
        self._switch_to(chosen)
        self.log({"surrogate_alignment": alignment, f"surrogate_{usual}": record[usual]})
        what = "surrogate for" if chosen is learned else "soft metric, nothing learned, for"
        self.tell(
            f"Switched at step {step} to the {what} {self._known_metric.name}: its alignment on held-out groups is "
            f"{alignment:.3f}, against "
            + " and ".join(f"{value:.3f} for {other}" for other, value in others.items())
            + "."
        )

    def _switch_to(self, surrogate: Surrogate) -> None:
        """Makes it the loss, one and the same in all processes, also without a shared disk."""
        self.surrogate = self.placed(surrogate)
        broadcast(list(self.surrogate.state_dict().values()))
        self.clock.spent = 0.0
        if self.state.switched_at is None:
            self.state.switched_at = self.trainer.state.global_step
            self.trainer.guard.changed()

    def decline(self) -> None:
        self.surrogate, self.state.switched_at, self.state.gave_up = None, None, True

    @property
    def learned(self) -> tuple[Surrogate | None, LearningState]:
        return self.surrogate, self.state

    @learned.setter
    def learned(self, learned: tuple[Surrogate | None, LearningState]) -> None:
        self.surrogate, self.state = learned

    def refresh(self) -> Surrogate:
        """Learns the surrogate again from what has been recorded since; if that fails, it stays as it is."""
        try:
            return self.learn()
        except Exception as error:  # a metric may be somebody's own, and raise anything
            step = self.trainer.state.global_step
            logger.warning(f"At step {step} the surrogate stays as it was: {why_failed(error)}")
            return self._in_place()

    def _go_on_without(self, reason: str) -> None:
        """Gives up learning: the loss is the soft metric from here on, if there is one, or the model's own."""
        soft_metric, step = self._usable_soft_metric(), self.trainer.state.global_step
        if soft_metric is None:
            self.state.gave_up, self.own_loss_because = True, reason
            goes_on = "The run goes on with the model's own loss"
        else:
            self._switch_to(soft_metric)
            goes_on = f"The run goes on with the soft metric for {self._known_metric.name}, of which nothing is learned"
        logger.warning(
            f"No surrogate of {self._known_metric.name} could be learned by step {step}: {reason} {goes_on}. To learn "
            f"one, train for longer or on more data, or set surrogate_warmup to more than the {step} steps of this run "
            f"({len(self.recorder):,} predictions were recorded); or pass another metric=, or a surrogate= that has "
            "been learned before."
        )

    def _usable_soft_metric(self) -> Surrogate | None:
        """The soft metric, if the metric has one and does not rank the wrong way round."""
        kind, metric = self.recording.known_kind, self._known_metric
        has_one = self.starts_at_soft_metric and kind.has_soft_metric(metric)
        if not has_one or (self._is_of_groups and self.recording.right_share() < FITTED):
            return None
        with torch.random.fork_rng(devices=[]):
            surrogate, _ = self.to_learn(kind, metric)
        surrogate.config.metric = metric.signature
        try:
            alignment = self.trainer.monitor.alignment(self.recorder, self.placed(surrogate))
        except Exception:  # what cannot be scored is why nothing was learned, which is reported
            return surrogate
        if alignment is None or alignment >= (DRIFTED if kind.of_values else -DRIFTED):  # of equal values it is low
            return surrogate
        if alignment < -DRIFTED:
            logger.warning(wrong_way_round(metric, alignment))
        return None

    def save_state(self, checkpoint: Path) -> None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        if self.is_recording:
            self.recording.save(checkpoint)
        if self.trainer.args.should_save:
            self.state.save(checkpoint)

    def end(self, best_checkpoint: Path | None) -> None:
        if best_checkpoint is not None and self.surrogate is not None:
            self.surrogate = self.saved_surrogate(best_checkpoint) if self.has_trained_model() else None
        super().end(best_checkpoint)
