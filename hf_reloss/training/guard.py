"""Judging a loss by the metric on development data while a run goes on, and going back to the model's own if it harms.

Where the loss is changed, the run is kept in a checkpoint. A short while later the model is compared with what it was
there; if it has become worse, the run goes on from there with its own loss. A strict guard trains both to their end.
"""

import copy
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..decisions.tuning import FEWEST, SURE, TunedDecision, judges_decisions, tune_decision
from ..learning.alignment import FEWEST_TO_RANK, gathered_columns
from ..metrics import Metric
from ..metrics.adapters import EvaluationMetrics
from ..metrics.base import IGNORED_LABEL
from ..metrics.bootstrap import bootstrapped, interval
from ..predictions.dataset import part_of, scored
from ..predictions.models import unwrapped, writes_text
from .arguments import option, output_folder
from .report import Gain, LossReport

PROBATION = 0.07
"""After how much of a run on another loss the model is compared with what it was before."""

MOST_EXAMPLES = 5_000
"""Of development data, so many judge at most."""


class Judged(NamedTuple):
    """The predictions of a model on the development data, in the form that the metric takes."""

    predictions: Any
    references: Any
    number: int


class Guard:
    """Judges the loss of a run.

    Args:
        trainer: whose run it is.
        dataset: development data, on which the model is not trained; None for the trainer's `eval_dataset`.
        wanted: False for none; `"strict"` if the model's own loss is to be trained on to the end, too, and the better
            model to be kept.

    Attributes:
        report: what came of the run; None before its end.
        declined: whether the loss has harmed, and was given up.
        ends_run: whether the run is to end here, for it goes on from where the loss was changed.
    """

    def __init__(self, trainer: Any, dataset: Any, wanted: bool | str):
        self.trainer, self.given, self.strict = trainer, dataset, wanted == "strict"
        self.is_on = bool(wanted)
        self.start()

    def start(self) -> None:
        """A run starts."""
        self.report: LossReport | None = None
        self.declined = self.ends_run = False
        self._reason = ""
        self._before: Judged | None = None
        self._gain: Gain | None = None
        self._switched, self._steps_twice = math.inf, 0
        self._folder: Path | None = None
        self._checkpoint: Path | None = None
        self._usual: dict[str, Any] | None = None

    @property
    def data(self) -> tuple[Any, str]:
        """The development data, and its name; None and why, if there is none."""
        dataset, name = self.given, "guard_dataset"
        if dataset is None:
            dataset, name = self.trainer.eval_dataset, "eval_dataset"
        if dataset is None or isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
            return None, "there is no eval_dataset or guard_dataset to judge it on"
        if len(dataset) > MOST_EXAMPLES:
            chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:MOST_EXAMPLES]
            dataset = part_of(dataset, sorted(chosen.tolist()))
        return dataset, f"{name}, {len(dataset):,} examples"

    def _hindrance(self) -> str:
        """Why a loss cannot be judged here; empty if it can."""
        trainer = self.trainer
        dataset, why = self.data
        if dataset is None:
            return why
        if len(dataset) < FEWEST_TO_RANK:
            return f"{len(dataset)} examples are too few to judge it"
        if writes_text(trainer.model):
            return "what a model writes is not judged yet"
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            return "weights that are divided over processes cannot be set back"
        if trainer.args.save_only_model and trainer.control.should_save:
            return "with save_only_model=True the run cannot be set back to this step"
        return ""

    def changed(self) -> None:
        """The loss has been changed at the end of this step: the model and the run are kept as they are now."""
        trainer = self.trainer
        if self._switched < math.inf or not self.is_on:
            return
        self._switched = trainer.state.global_step
        self._reason = self._hindrance()
        if self._reason:
            return
        self._before = self._judged()
        if self._before is None:
            self._reason = "too few predictions could be judged"
            return
        self._folder = self._new_folder()
        args = trainer.args
        if not trainer.control.should_save:  # else it is copied from the user's own
            self._usual = {name: getattr(args, name) for name in ("output_dir", "push_to_hub", "save_only_model")}
            args.output_dir, args.push_to_hub, args.save_only_model = str(self._folder), False, False
            trainer.control.should_save = True

    def saved(self) -> None:
        """A checkpoint has been written."""
        trainer, step = self.trainer, self.trainer.state.global_step
        if self._folder is None or step != self._switched or self._checkpoint is not None:
            return
        name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if self._usual is not None:
            for option, value in self._usual.items():
                setattr(trainer.args, option, value)
            self._usual = None
        elif trainer.args.should_save:
            shutil.copytree(output_folder(trainer.args) / name, self._folder / name)
        trainer.accelerator.wait_for_everyone()
        self._checkpoint = self._folder / name

    def end_step(self, control: TrainerControl) -> None:
        """A step has been made; a loss that has harmed ends the run here, which `settle` goes on with."""
        state = self.trainer.state
        trial = max(1, round(PROBATION * state.max_steps))
        if self.strict or self._before is None or state.global_step != self._switched + trial:
            return
        self._gain = self._difference(self._judged(), self._before)
        if self._gain is not None and self._gain.better < 1 - SURE:
            self.declined = self.ends_run = control.should_training_stop = True
            control.should_save = control.should_evaluate = False
            self.trainer.strategy.tell(f"Going back to step {self._switched:.0f}: {self._of_loss().verdict}")

    def settle(self, output: TrainOutput, train_on_own_loss: Callable[[Path], TrainOutput]) -> TrainOutput:
        """The run is over: trains on the model's own loss where that is wanted, and leaves the better model.

        Args:
            output: of the run.
            train_on_own_loss: goes on from a checkpoint on the model's own loss, to the end.

        Returns:
            That of the run which is kept.
        """
        trainer = self.trainer
        try:
            if self._checkpoint is not None and self.declined:
                self._steps_twice = max(1, round(PROBATION * trainer.state.max_steps))
                report, self.ends_run = self._of_loss(), False
                output = train_on_own_loss(self._checkpoint)
            elif self._checkpoint is not None and self.strict and self._before is not None:
                output, report = self._better_of_two(output, train_on_own_loss)
            else:
                report = self._of_loss()
        finally:
            if self._folder is not None and trainer.args.should_save:
                shutil.rmtree(self._folder, ignore_errors=True)
        self.report = report
        return output

    def note(self, decision: TunedDecision) -> None:
        """The decision has been tuned, on the same data."""
        assert self.report is not None
        self.report = dataclasses.replace(self.report, decision=decision, data=self.data[1])

    def _of_loss(self) -> LossReport:
        """What is known of the loss without another run."""
        trainer = self.trainer
        steps = trainer.state.max_steps
        is_judged = self._gain is not None
        name = trainer.strategy.describe().name if trainer.strategy.switched_at < math.inf else ""
        return LossReport(
            trainer.strategy.metric_name,
            data=self.data[1] if is_judged else "",
            loss=name,
            kept=bool(name) and not self.declined,
            over="before" if is_judged else "",
            gain=self._gain,
            reason=self._reason if name else trainer.strategy.own_loss_because,
            cost=1 + self._steps_twice / max(1, steps),
        )

    def _better_of_two(
        self, output: TrainOutput, train_on_own_loss: Callable[[Path], TrainOutput]
    ) -> tuple[TrainOutput, LossReport]:
        """Trains on the model's own loss from where it was changed, and leaves the better of both models."""
        assert self._checkpoint is not None
        trainer = self.trainer
        model, steps, name = unwrapped(trainer.model), trainer.state.max_steps, trainer.strategy.describe().name
        ours = self._judged()
        weights = {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
        kept = copy.copy(trainer.state), trainer.has_best_model, trainer.strategy.learned
        trainer.strategy.tell(f"From step {self._switched:.0f} again, on the model's own loss, to compare.")
        usual = train_on_own_loss(self._checkpoint)
        gain = self._difference(ours, self._judged())
        is_better = gain is not None and gain.better > 0.5
        if is_better:
            model.load_state_dict(weights)
            trainer.state, trainer.has_best_model, trainer.strategy.learned = kept
        report = LossReport(
            trainer.strategy.metric_name,
            self.data[1],
            name,
            is_better,
            "own loss",
            gain,
            cost=2 - self._switched / steps,
        )
        return (output if is_better else usual), report

    def _judged(self) -> Judged | None:
        """The model's predictions on the development data, as the metric takes them; of classes, decided by it."""
        trainer, dataset = self.trainer, self.data[0]
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws from it
            recorder = trainer.recorded_evaluation(dataset, 2 * MOST_EXAMPLES)
        columns, kind = gathered_columns(recorder), recorder.kind
        metric: Metric = trainer.strategy.metric
        if columns is None or kind is None:
            return None
        number = len(columns["labels"])
        if isinstance(metric, EvaluationMetrics):
            return Judged(*metric.columns(columns), number)
        if kind.scores_logits:
            logits, labels = columns["logits"], columns["labels"]
            counts = labels != IGNORED_LABEL
            logits, labels = logits[counts], labels[counts]
            if (
                option(trainer.args, "tune_decision")
                and len(labels) >= FEWEST
                and judges_decisions(metric, logits, labels)
            ):
                decided = tune_decision(logits, labels, metric).decided
                return Judged(metric.as_predictions(decided, logits.shape[-1]), labels, len(labels))
            return Judged(logits, labels, len(labels))
        return Judged(*scored(kind, columns, trainer.strategy.decoder(kind, metric)), number)

    def _difference(self, ours: Judged | None, theirs: Judged | None) -> Gain | None:
        """The metric of some predictions less that of others of the same examples; None if they cannot be compared."""
        metric: Metric = self.trainer.strategy.metric
        if ours is None or theirs is None or ours.number != theirs.number:
            return None
        ways = [ours.predictions, theirs.predictions]
        sign = 1.0 if metric.higher_is_better else -1.0
        every = torch.arange(ours.number)[None]
        mean, theirs_mean = (float(metric.score_groups(way, ours.references, every)[0]) for way in ways)
        scores = bootstrapped(metric, ways, ours.references, ours.number)
        differences = scores[0] - scores[1]
        better = float((sign * differences > 0).double().mean() + (differences == 0).double().mean() / 2)
        (gain,) = broadcast_object_list([Gain(mean - theirs_mean, *interval(differences), better)])
        return Gain(*gain)

    def _new_folder(self) -> Path:
        """A folder of its own in the trainer's, the same in all processes."""
        path = ""
        if self.trainer.args.process_index == 0:
            output_folder(self.trainer.args).mkdir(parents=True, exist_ok=True)
            path = tempfile.mkdtemp(prefix="_own_loss-", dir=output_folder(self.trainer.args))
        (found,) = broadcast_object_list([path])
        return Path(found)
