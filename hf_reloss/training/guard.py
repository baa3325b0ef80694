"""Judging a loss by the metric on development data while a run goes on, and going back to the model's own if it harms.

Where the loss is changed, the run is kept in a checkpoint. A short while later the model is compared with what it was
there; if it has become worse, the run goes on from there with its own loss. A strict guard trains both to their end.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerControl
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..decisions.tuning import FEWEST, SURE, TunedDecision, tune_decision
from ..learning.alignment import FEWEST_TO_RANK, gathered_columns
from ..metrics import Metric
from ..metrics.adapters import EvaluationMetrics
from ..metrics.base import IGNORED_LABEL
from ..metrics.bootstrap import bootstrapped, interval
from ..metrics.credits import is_differentiable, judges_decisions
from ..predictions.dataset import part_of, scored
from ..predictions.models import unwrapped, writes_text
from ..predictions.recorder import PredictionRecorder
from .arguments import option
from .kept_run import KeptRun
from .report import Gain, LossReport

logger = logging.get_logger(__name__)

PROBATION = 0.07
"""After how much of a run on another loss the model is compared with what it was before."""

MOST_EXAMPLES = 5_000
"""The most that are read of development data; the guard reads no more than what takes 1.25 % of the run, and 80."""

STATE = "guard_state.json"
"""What a checkpoint remembers of the guard."""

TrainOnOwnLoss = Callable[[Path], TrainOutput]


class Judged(NamedTuple):
    """The predictions of a model on the development data, in the form that the metric takes."""

    predictions: Any
    references: Any
    number: int


@dataclasses.dataclass
class GuardState:
    """How far the guard is, as checkpoints remember it.

    Attributes:
        switched: the step after which the loss is another one; None before that.
        loss: what that is, in words.
        gain: by which the model has changed in its first steps on it.
        declined: whether it has harmed, and was given up.
        reason: why it is not judged.
        waits: whether it is still to be judged.
        examples: of the development data, how many judge it.
    """

    switched: int | None = None
    loss: str = ""
    gain: Gain | None = None
    declined: bool = False
    reason: str = ""
    waits: bool = False
    examples: int = MOST_EXAMPLES


class Guard:
    """Judges the loss of a run.

    Args:
        trainer: that runs.
        dataset: development data, on which the model is not trained; None for the trainer's `eval_dataset`.
        wanted: False for none; `"strict"` if the model's own loss is to be trained on to the end, too, and the better
            model to be kept.

    Attributes:
        report: what came of the run; None before its end.
        ends_run: whether the run is to end here, for it goes on from where the loss was changed.
    """

    def __init__(self, trainer: Any, dataset: Any, wanted: bool | str):
        self.trainer, self.given, self.wanted = trainer, dataset, bool(wanted)
        self.strict = wanted == "strict"
        self.start(None)

    def start(self, checkpoint: Path | None, is_possible: bool = True) -> None:
        """A run starts, anew or from a checkpoint.

        Args:
            checkpoint: that it goes on from.
            is_possible: whether it can be set back.
        """
        self.is_on = self.wanted and is_possible
        self.report: LossReport | None = None
        self.ends_run = False
        self.state = GuardState()
        self._before: PredictionRecorder | None = None
        self.kept_run = KeptRun(self.trainer)
        file = None if checkpoint is None else checkpoint / STATE
        if not self.is_on or file is None or not file.is_file():
            return
        assert checkpoint is not None
        found = json.loads(file.read_text(encoding="utf-8"))
        self.state = GuardState(**found | {"gain": None if found["gain"] is None else Gain(*found["gain"])})
        if not self.state.waits:
            return
        recorded = checkpoint / self._recorded
        if self._kept.is_dir() and recorded.is_file():
            self._before = PredictionRecorder(2 * MOST_EXAMPLES)
            self._before.load(recorded)
        else:
            self.state.waits, self.state.reason = False, "the run was resumed without what it could be set back to"

    def save_state(self, checkpoint: Path) -> None:
        """Writes what is needed to go on into a checkpoint. All processes call it."""
        if self.state.switched is None:
            return
        checkpoint.mkdir(parents=True, exist_ok=True)
        if self._before is not None:
            self._before.save(checkpoint / self._recorded)
        if self.trainer.args.should_save:
            content = json.dumps(dataclasses.asdict(self.state) | {"gain": self.state.gain}, indent=2)
            (checkpoint / STATE).write_text(content + "\n", encoding="utf-8")

    @property
    def _recorded(self) -> str:
        return f"guard_{self.trainer.args.process_index}.safetensors"

    @property
    def _kept(self) -> Path:
        """The checkpoint of the run as it was when the loss was changed."""
        assert self.state.switched is not None
        return self.kept_run.checkpoint(self.state.switched)

    @property
    def data(self) -> str:
        """The name of the development data."""
        return "eval_dataset" if self.given is None else "guard_dataset"

    def development(self, most: int = MOST_EXAMPLES) -> Any:
        """Development data, some of it if there is more than `most`; None if there is none that has a length."""
        dataset = self.trainer.eval_dataset if self.given is None else self.given
        if dataset is None or isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
            return None
        if len(dataset) <= most:
            return dataset
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:most]
        return part_of(dataset, sorted(chosen.tolist()))

    def _hindrance(self) -> str:
        """Why a loss cannot be judged here; empty if it can."""
        trainer = self.trainer
        dataset = self.development()
        if not self.wanted:
            return "guard=False"
        if not self.is_on:
            return "each run of a search has a folder of its own"
        if dataset is None:
            return "there is no eval_dataset or guard_dataset to judge it on"
        if len(dataset) < FEWEST_TO_RANK:
            return f"{len(dataset)} examples are too few to judge it"
        if writes_text(trainer.model):
            return "what a model writes is not judged yet"
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            return "weights that are divided over processes cannot be set back"
        if trainer.args.save_only_model and trainer.control.should_save:
            return "with save_only_model=True the run cannot be set back to this step"
        return ""

    def announce(self) -> None:
        """Says at the start of a run, where it is known by then, why its loss will not be judged."""
        reason = self._hindrance()
        if self.wanted and reason:
            self.trainer.strategy.tell(f"Nothing will judge another loss than the model's own: {reason}.")

    def changed(self) -> None:
        """The loss has been changed at the end of this step: the model and the run are kept as they are now."""
        trainer, args = self.trainer, self.trainer.args
        if self.state.switched is not None:
            return
        self.state = GuardState(trainer.state.global_step, trainer.strategy.loss_name, reason=self._hindrance())
        if self.state.reason:
            return
        examples_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        affordable = trainer.strategy.clock.affordable_examples(examples_per_step, trainer.state.max_steps)
        (affordable,) = broadcast_object_list([min(MOST_EXAMPLES, max(FEWEST_TO_RANK, affordable))])
        self.state.examples = MOST_EXAMPLES if self.strict else affordable
        failed = ""
        try:
            self._before = self._recorded_now()
        except Exception as error:  # such as of data that the model does not take
            failed = f"{type(error).__name__} on the development data: {error}"
        self.state.reason = next(filter(None, gather_object([failed])), "")
        if self.state.reason:
            self._before = None
            return
        self.state.waits = True
        self.kept_run.keep()

    def saved(self) -> None:
        """A checkpoint has been written."""
        step = self.trainer.state.global_step
        if not self.state.waits or step != self.state.switched:
            return
        if not self.kept_run.saved(step):
            self.state.waits, self._before = False, None
            self.state.reason = "not all processes see the checkpoint that the run could be set back to"

    def end_step(self, control: TrainerControl) -> None:
        """A step has been made; a loss that has harmed ends the run here, which `settle` goes on with."""
        state = self.trainer.state
        trial = max(1, round(PROBATION * state.max_steps))
        if self.strict or not self.state.waits or state.global_step != self.state.switched + trial:
            return
        assert self._before is not None
        self.state.gain = self._gain(lambda: self._judged(self._recorded_now()), self._before)
        self.state.waits, self._before = False, None
        if self.state.gain is not None and self.state.gain.better < 1 - SURE:
            self.state.declined = self.ends_run = control.should_training_stop = True
            control.should_save = control.should_evaluate = False
            self.trainer.strategy.tell(
                f"{self.trainer.strategy.metric_name} has changed by {self.state.gain} since the loss is "
                f"{self.state.loss}: going back to step {self.state.switched}, to the model's own loss."
            )
        else:
            self._remove()

    def settle(self, output: TrainOutput, train_on_own_loss: TrainOnOwnLoss) -> TrainOutput:
        """The run is over: trains on the model's own loss where that is wanted, and leaves the better model.

        Args:
            output: of the run.
            train_on_own_loss: goes on from a checkpoint on the model's own loss, to the end.

        Returns:
            That of the run which is kept.
        """
        state, twice = self.state, 0
        try:
            if self.ends_run:
                self.ends_run, twice = False, self.trainer.state.global_step - (state.switched or 0)
                self.kept_run.go_back()
                output = train_on_own_loss(self._kept)
            elif self.strict and state.waits:
                return self._better_of_two(output, train_on_own_loss)
        finally:
            self._remove()
        strategy = self.trainer.strategy
        if state.switched is None and strategy.switched_at < math.inf:  # in a run that had no guard
            state.loss, state.reason = strategy.loss_name, "the run was resumed after its loss had changed"
        reason = state.reason if state.loss else strategy.own_loss_because
        if state.waits and not reason:
            reason = "too few steps were left for that"
        self.report = LossReport(
            strategy.metric_name,
            data=self.data if state.gain is not None else "",
            loss=state.loss,
            kept=bool(state.loss) and not state.declined,
            over="before" if state.gain is not None else "",
            gain=state.gain,
            reason=reason,
            cost=1 + twice / max(1, self.trainer.state.max_steps),
        )
        return output

    def _better_of_two(self, output: TrainOutput, train_on_own_loss: TrainOnOwnLoss) -> TrainOutput:
        """Trains on the model's own loss from where it was changed, and leaves the better of both models."""
        trainer, state = self.trainer, self.state
        model, steps = unwrapped(trainer.model), trainer.state.max_steps
        assert state.switched is not None
        ours = self._recorded_now()
        weights = {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
        kept = copy.copy(trainer.state), trainer.has_best_model, trainer.strategy.learned
        trainer.strategy.tell(f"From step {state.switched} again, on the model's own loss, to compare.")
        state.waits, state.declined = False, True  # as a checkpoint of this run should have it
        state.reason = "the run was resumed without what it is to be compared with"
        self.kept_run.put_away(state.switched)
        self.kept_run.go_back()
        try:
            usual = train_on_own_loss(self._kept)
        except BaseException:  # also where somebody stops it: the first run is not lost to the second
            self.kept_run.bring_back()
            raise
        state.reason = ""
        state.gain = self._gain(lambda: self._judged(ours), self._recorded_now())
        is_better = state.gain is not None and state.gain.better > 0.5
        state.declined = not is_better
        if is_better:
            model.load_state_dict(weights)
            trainer.state, trainer.has_best_model, trainer.strategy.learned = kept
            self.kept_run.bring_back()
            trainer.accelerator.wait_for_everyone()
        self.report = LossReport(
            trainer.strategy.metric_name,
            data=self.data,
            loss=state.loss,
            kept=is_better,
            over="own loss",
            gain=state.gain,
            reason=state.reason,
            cost=2 - (state.switched or 0) / steps,
        )
        return output if is_better else usual

    def note(self, decision: TunedDecision) -> None:
        """The decision has been tuned, on the same data."""
        assert self.report is not None
        self.report = dataclasses.replace(self.report, decision=decision, data=self.data)

    def _recorded_now(self) -> PredictionRecorder:
        """What the model predicts for the development data now, as this process has it."""
        with torch.random.fork_rng(devices=[]):
            # A collator may draw labels, as of masked words: the same ones each time.
            torch.manual_seed(self.trainer.args.seed)
            data = self.development(self.state.examples)
            recorder: PredictionRecorder = self.trainer.recorded_evaluation(data, 2 * MOST_EXAMPLES)
        return recorder

    def _judged(self, recorder: PredictionRecorder) -> Judged:
        """Predictions as the metric takes them; of classes, as the tuned decision has them, where that takes no time.

        Raises:
            ValueError: for too few.
        """
        trainer, metric = self.trainer, self.trainer.strategy.metric
        columns, kind = gathered_columns(recorder), recorder.kind
        if columns is None or kind is None:
            raise ValueError(f"there are fewer than {FEWEST_TO_RANK} predictions.")
        if isinstance(metric, EvaluationMetrics):
            return Judged(*metric.columns(columns), len(columns["labels"]))
        if not kind.scores_logits:
            return Judged(*scored(kind, columns, trainer.strategy.decoder(kind, metric)), len(columns["labels"]))
        logits, labels = scored(kind, columns)
        rows = (labels != IGNORED_LABEL).view(len(labels), -1).any(-1)
        logits, labels = logits[rows], labels[rows]
        is_quick = len(labels) >= FEWEST and is_differentiable(metric, logits.shape[-1])
        if option(trainer.args, "tune_decision") and is_quick and judges_decisions(metric, logits, labels):
            decided = tune_decision(logits, labels, metric).decided
            return Judged(metric.as_predictions(decided, logits.shape[-1]), labels, len(labels))
        return Judged(logits, labels, len(labels))

    def _gain(self, ours: Callable[[], Judged], before: PredictionRecorder) -> Gain | None:
        """The metric of some predictions less that of others of the same examples; None if they cannot be compared."""
        metric: Metric = self.trainer.strategy.metric
        gain = None
        try:
            one, other = ours(), self._judged(before)
            if not _same(one.references, other.references):
                raise ValueError("its labels differ from one evaluation to the next: draw them once, beforehand.")
            every, ways = torch.arange(one.number)[None], [one.predictions, other.predictions]
            means = [float(metric.score_groups(way, one.references, every)[0]) for way in ways]
            scores = bootstrapped(metric, ways, one.references, one.number)
            differences = scores[0] - scores[1]
            ahead = differences if metric.higher_is_better else -differences
            better = float((ahead > 0).double().mean() + (ahead == 0).double().mean() / 2)
            gain = Gain(means[0] - means[1], *interval(differences), better, one.number)
        except Exception as error:  # of somebody's own metric, too
            logger.warning(f"The loss could not be judged: {error!r}")
            self.state.reason = f"{type(error).__name__} on the development data: {error}"
        (found,) = broadcast_object_list([gain])
        return None if found is None else Gain(*found)

    def _remove(self) -> None:
        """Takes away what was kept to go back to."""
        if self.state.switched is not None:
            self.kept_run.remove()


def _same(one: Any, other: Any) -> bool:
    """Whether references, arrays, tensors or lists of these or of texts, are equal."""
    if isinstance(one, np.ndarray | torch.Tensor):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
