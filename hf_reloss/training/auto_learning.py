"""What `surrogate="auto"` does in a run: predictions are recorded, and a surrogate is learned from them."""

import contextlib
import copy
import functools
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.utils import logging

from ..distributed import undisturbed
from ..learning.time_limit import HELD_OUT, RunClock, Stopwatch, TimeLimit, affordable_groups
from ..learning.trainer import MisalignedSurrogateError, SurrogateTrainer, SurrogateTrainingArguments
from ..metrics import GroupwiseMetric, Metric, metric_of
from ..predictions.dataset import joined, recorded_dataset
from ..predictions.models import description_of
from ..predictions.recorder import PredictionRecorder
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from ..surrogates.config import SurrogateConfig
from .arguments import FEWEST_TO_LEARN, option
from .learned_metric import FindsMetric
from .learning_state import LearningState
from .monitor import DRIFTED

logger = logging.get_logger(__name__)

SURROGATE_FOLDER = "surrogate"
"""Where a checkpoint keeps the surrogate."""

FITTED = 0.5
"""The share of predictions that are right before a loss of groups is used: where most are wrong, models lost by it."""

EPOCHS = 5
"""Over the groups, half as many as `SurrogateTrainer` has by default: a run waits for this."""


class LearnsSurrogate(FindsMetric):
    """The part of a Trainer that records predictions and learns a surrogate of the metric from them.

    Learning never ends a run. Where it fails at the end of the first stretch, predictions are recorded for as long
    again, and it is tried once more. Where it fails again, the loss is the soft metric, the surrogate before anything
    is learned, or, of a metric that has none, the model's own; a warning says why. The soft metric is the loss, too,
    where what was learned ranks held-out groups worse than that, or than the usual loss.

    Attributes:
        surrogate: the loss; None as long as it is to be learned.
        recorder: of the predictions to learn from; None with a given surrogate.
        learning: how far that has come.
    """

    surrogate: Surrogate | None
    recorder: PredictionRecorder | None
    learning: LearningState | None = None
    _approximates: bool = False
    _clock: RunClock

    def learn_surrogate(self) -> Surrogate:
        """Learns the surrogate from what has been recorded, on all processes together, and goes on with it.

        It takes 5 % of the run or 10 seconds, whichever is more. Goes on with the soft metric if that, or the usual
        loss, ranks held-out groups better than what was learned.

        Raises:
            ValueError, MisalignedSurrogateError: if nothing can be learned.
        """
        args, kind = self.args, self.recorder.kind
        limit = TimeLimit(self._clock.seconds_to_learn(self.state.global_step, self.state.max_steps))
        predictions = self._recorded_everywhere()
        if self._is_of_groups and self._right_share() < FITTED:
            raise ValueError(
                f"The loss for {self.metric.name} is that of whole groups, which hardly corrects wrong predictions: it "
                f"wants {FITTED:.0%} of the latest ones to be right with p > 1/2, but {self._right_share():.0%} are."
            )
        why = "The warm-up is over" if self.surrogate is None else f"{self._refresh_steps} steps more are recorded"
        self._tell(
            f"{why} at step {self.state.global_step}: learning a surrogate of {self.metric.name} from "
            f"{len(predictions):,} predictions."
        )
        sizes = self._sizes(predictions, limit)
        with self._temporary_folder() as folder, undisturbed():
            to_learn, how = self._to_learn(kind, self.metric)
            soft_metric = None if self._approximates else copy.deepcopy(to_learn)
            learner = SurrogateTrainer(
                to_learn,
                SurrogateTrainingArguments(
                    output_dir=str(folder),
                    **how,
                    **sizes,
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
                callbacks=[limit],
            )
            for chatty in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
                learner.pop_callback(chatty)
            if not args.disable_tqdm:
                learner.add_callback(_LearningBar)
            began = limit.watch.seconds()
            start = learner.evaluate()
            limit.reserve(2.5 * (limit.watch.seconds() - began))  # for two evaluations in the end, and what is read
            self._expect_more_than(start, learner.args.min_alignment)
            learner.train()
        self._go_on_with(learner.accelerator.unwrap_model(learner.model), soft_metric, start)
        if self._refresh_steps is not None:
            self.recorder = self._fresh_recorder()
            self.recorder.kind = kind
        return self.surrogate

    def _expect_more_than(self, start: Mapping[str, float], least: float) -> None:
        """Spares a first try the learning where the soft metric ranks too badly to begin with: later it may be better.

        Raises:
            MisalignedSurrogateError: then.
        """
        alignment = start["eval_alignment_canonical"]
        is_first = self.surrogate is None and self.learning.next_try is None
        if is_first and not self._approximates and not alignment >= least:
            raise MisalignedSurrogateError(
                f"Before learning, the surrogate's alignment with {self.metric.name} on held-out groups is "
                f"{alignment:.3f}, below {least}."
            )

    def _go_on_with(self, learned: Surrogate, soft_metric: Surrogate | None, start: Mapping[str, float]) -> None:
        """Makes the loss what was learned or, if that does not rank better, the soft metric, which `start` measures."""
        record, usual = learned.config.record, f"alignment_{learned.original_loss}"
        chosen, others = learned, {learned.original_loss.replace("_", " "): record[usual]}
        if soft_metric is not None and not record["alignment"] >= max(start["eval_alignment"], record[usual]):
            others = {"the learned surrogate": record["alignment"]} | others
            chosen, chosen.config.metric = soft_metric, learned.config.metric
            measured = {name.removeprefix("eval_"): value for name, value in start.items() if "alignment" in name}
            names = ("models", "eval_groups", "train_groups", "group_size", "predictions", "seed")
            chosen.config.record = measured | {name: record[name] for name in names} | {"steps": 0}
        alignment = chosen.config.record["alignment"]
        self._switch_to(chosen)
        logs_next = self.control.should_log  # which logging this would take back
        self.log({"surrogate_alignment": alignment, f"surrogate_{usual}": record[usual]})
        self.control.should_log = logs_next
        what = "surrogate for" if chosen is learned else "soft metric, nothing learned, for"
        self._tell(
            f"Switched at step {self.state.global_step} to the {what} {self.metric.name}: its alignment on "
            f"held-out groups is {alignment:.3f}, against "
            + " and ".join(f"{value:.3f} for {other}" for other, value in others.items())
            + "."
        )

    def _switch_to(self, surrogate: Surrogate) -> None:
        """Makes it the loss, one and the same in all processes, also without a shared disk."""
        self.surrogate = self._placed(surrogate)
        broadcast(list(self.surrogate.state_dict().values()))
        self._clock.spent = 0.0
        if self.learning.switched_at is None:
            self.learning.switched_at = self.state.global_step

    def refresh_surrogate(self) -> Surrogate:
        """Learns the surrogate again from what has been recorded since; if that fails, it stays as it is."""
        try:
            return self.learn_surrogate()
        except Exception as error:  # a metric may be somebody's own, and raise anything
            logger.warning(f"At step {self.state.global_step} the surrogate stays as it was: {_reason(error)}")
            return self.surrogate

    def _end_first_stretch(self) -> None:
        """Learns the surrogate if there is enough to learn from, and no try has failed just now."""
        step, again = self.state.global_step, self.learning.next_try
        if again is not None:
            if step >= again:
                self._learn_or_go_on()
            return
        number = self._recorded_number()
        if number >= FEWEST_TO_LEARN:
            self._learn_or_go_on()
        elif 2 * step >= self.warmup_steps + self.state.max_steps:  # in the middle of what is left, it waits no longer
            self._go_on_without(_too_few(number))

    def _learn_or_go_on(self) -> None:
        """Tries to learn the surrogate; what fails is tried again later, and then given up."""
        step, left = self.state.global_step, self.state.max_steps - self.state.global_step
        watch = Stopwatch()
        try:
            self.learn_surrogate()
        except Exception as error:  # a metric may be somebody's own, and raise anything
            self._clock.spent += watch.seconds()
            again = step + min(step - self.learning.first_step, left // 2)
            if self.learning.next_try is None and again > step:
                self.learning.next_try = again
                self._tell(
                    f"At step {step} no surrogate of {self.metric.name} can be learned yet: {_reason(error)} Recording "
                    f"goes on until step {again}."
                )
            else:
                self._go_on_without(_reason(error))

    def _go_on_without(self, reason: str) -> None:
        """Gives up learning: the loss is the soft metric from here on, if there is one, or the model's own."""
        soft_metric, step = self._usable_soft_metric(), self.state.global_step
        if soft_metric is None:
            self.learning.gave_up = True
            goes_on = "The run goes on with the model's own loss"
        else:
            self._switch_to(soft_metric)
            goes_on = f"The run goes on with the soft metric for {self.metric.name}, of which nothing is learned"
        logger.warning(
            f"No surrogate of {self.metric.name} could be learned by step {step}: {reason} {goes_on}. To learn one, "
            f"train for longer or on more data, or set surrogate_warmup to more than the {step} steps of this run "
            f"({len(self.recorder):,} predictions were recorded); or pass another metric=, or a surrogate= that has "
            "been learned before."
        )

    def _usable_soft_metric(self) -> Surrogate | None:
        """The soft metric, if the metric has one and does not rank the wrong way round."""
        kind = self.recorder.kind
        if self._approximates or not kind.has_soft_metric(self.metric):
            return None
        if self._is_of_groups and self._right_share() < FITTED:
            return None
        with torch.random.fork_rng(devices=[]):
            surrogate, _ = self._to_learn(kind, self.metric)
        surrogate.config.metric = self.metric.signature
        try:
            alignment = self._alignment(self.recorder, self._placed(surrogate))
        except Exception:  # what cannot be scored is why nothing was learned, which is reported
            return surrogate
        if alignment is not None and alignment < -DRIFTED:
            logger.warning(
                f"{self.metric.name} falls where predictions get better (rank correlation {alignment:.2f}). If less of "
                "it is better, say so: greater_is_better=False with metric_for_best_model, or "
                "metric=load_metric(..., higher_is_better=False)."
            )
            return None
        return surrogate

    def _right_share(self) -> float:
        """The share of predictions with p(label) > 1/2, of the later half of what all processes have recorded."""
        kind, right, number = self.recorder.kind, 0, 0
        if len(self.recorder):
            latest = {name: column[len(self.recorder) // 2 :] for name, column in self.recorder.rows().items()}
            reader = kind(SurrogateConfig(task=kind.task))
            evidence = reader.evidence(latest, latest["labels"])
            right = int((reader.original_losses(evidence) < math.log(2))[evidence.counts].sum())
            number = int(evidence.counts.sum())
        found = gather_object([(right, number)])
        return sum(right for right, _ in found) / max(1, sum(number for _, number in found))

    def _sizes(self, predictions: datasets.Dataset, limit: TimeLimit) -> dict[str, int]:
        """How many groups of which size learning can afford."""
        kind = self.recorder.kind
        # Few predictions make smaller groups: a tenth of them, of which a fifth is held out.
        size = max(FEWEST_TO_LEARN // 10, min(SurrogateTrainingArguments.group_size, len(predictions) // 10))
        some = {name: column[:size] for name, column in self.recorder.rows().items()} if len(self.recorder) else {}
        elements = sum(some[name][0].numel() for name in kind.read_columns if name in some)
        score = functools.partial(self._score, some) if some and isinstance(self.metric, GroupwiseMetric) else None
        most = SurrogateTrainingArguments.num_eval_groups
        with undisturbed():
            held_out = affordable_groups(most, size, len(predictions), elements, score, limit.seconds / 2)
        (held_out,) = broadcast_object_list([held_out])  # all have as many as the first process can afford
        return {"group_size": size, "num_eval_groups": held_out, "num_groups": HELD_OUT * held_out}

    def _to_learn(self, kind: type[Surrogate], metric: Metric) -> tuple[Surrogate, dict[str, Any]]:
        """The surrogate that is to be learned, and how: ranks, or values in turn with the model."""
        if not self._approximates:
            return kind.for_metric(metric, trust_region=True), {"num_train_epochs": EPOCHS}
        network, settings = kind(SurrogateConfig(task=kind.task, architecture="set")), {"objective": "approximation"}
        if self.surrogate is not None:  # it goes on from what it was
            network.load_state_dict(self.surrogate.state_dict())
            settings["num_train_epochs"] = 2
        return network, settings

    @property
    def _is_recording(self) -> bool:
        """Whether predictions are recorded: until a surrogate is learned or, if it is to be again, always."""
        if self.recorder is None or self.learning.gave_up:
            return False
        return self.surrogate is None or self._refresh_steps is not None

    @property
    def _refresh_steps(self) -> int | None:
        steps = getattr(self.args, "refresh_steps", None)
        return max(1, self.warmup_steps) if steps is None and self._approximates else steps

    def _start_recording(self) -> None:
        self.surrogate, self.metric = None, None
        self._records_evaluation = self._is_of_groups = False
        wanted = self._wanted_metric if isinstance(self._wanted_metric, str) else self._wanted_metric.signature
        self.learning = LearningState("approximation" if self._approximates else "auto", wanted)
        self.recorder = self._fresh_recorder()

    def _fresh_recorder(self) -> PredictionRecorder:
        return PredictionRecorder(option(self.args, "max_recorded_predictions"))

    def _recorded_number(self) -> int:
        """How many predictions all processes have recorded together."""
        return sum(gather_object([len(self.recorder)]))

    def _save_learning(self, folder: Path) -> None:
        """Writes what is needed to go on into a checkpoint: what this process has recorded, and the state."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._is_recording:
            self.recorder.save(folder / self._recording_name)
        if self.args.should_save:
            self.learning.save(folder)

    def _resume_recording(self, checkpoint: Path) -> None:
        """Takes the surrogate, or what has been recorded for it, from a checkpoint.

        A checkpoint of another Trainer, or of another metric or surrogate, has none: recording starts there.
        """
        former, wanted = LearningState.load(checkpoint), self.learning
        recording = checkpoint / self._recording_name
        found = any(gather_object([recording.is_file()]))  # all processes go on alike
        if former is not None and (former.surrogate, former.metric) != (wanted.surrogate, wanted.metric):
            why = f"was trained with surrogate={former.surrogate!r}, metric={former.metric!r}"
        elif former is None and not found and not (checkpoint / SURROGATE_FOLDER).is_dir():
            why = "has no surrogate and no recording for one"
        else:
            self.learning = former or wanted
            if (checkpoint / SURROGATE_FOLDER).is_dir():
                self.surrogate = self._placed(AutoSurrogate.from_pretrained(checkpoint / SURROGATE_FOLDER))
                self.watched_metric = metric_of(self.surrogate.config.metric)
            if recording.is_file():
                self.recorder.load(recording)
            return
        wanted.first_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step
        logger.warning(f"{checkpoint} {why}: for {wanted.metric} recording starts now.")

    def _recorded_everywhere(self) -> datasets.Dataset:
        """What all processes have recorded."""
        parts = [part for part in gather_object([self.recorder.rows() if len(self.recorder) else None]) if part]
        number = sum(len(part["labels"]) for part in parts)
        if number < FEWEST_TO_LEARN:
            raise ValueError(_too_few(number))
        columns = {name: joined([part[name] for part in parts]) for name in parts[0] if name != "index"}
        return recorded_dataset(
            self.recorder.kind,
            columns,
            tokenizer=self._decoding(self.recorder.kind, self.metric),
            metric=self.metric,
            description=description_of(self.model),
        )

    @contextlib.contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        """A new folder in `output_dir`, the same for all processes, that is taken away at the end."""
        made = None
        if self.is_world_process_zero():
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix="_surrogate-", dir=self.args.output_dir)  # push_to_hub leaves _* out
        (folder,) = broadcast_object_list([made])
        try:
            yield Path(folder)
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(folder, ignore_errors=True)

    def _placed(self, surrogate: Surrogate) -> Surrogate:
        return surrogate.to(self.args.device).freeze()

    @property
    def _recording_name(self) -> str:
        return f"recording_{self.args.process_index}.safetensors"


def _too_few(number: int) -> str:
    return f"{number} predictions are recorded, and {FEWEST_TO_LEARN} are the fewest to learn from."


def _reason(error: Exception) -> str:
    """Why nothing could be learned, as a sentence; of what a metric of somebody's own raised, with its type."""
    if isinstance(error, MisalignedSurrogateError):
        return error.summary
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


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
        self.trainer._clock = RunClock(state.global_step)
        if self.trainer.recorder is None and state.global_step < steps < state.max_steps:
            self.trainer._tell(f"The model's own loss is the loss until step {steps}, for a warm-up.")
        surrogate = self.trainer.surrogate
        if surrogate is not None and surrogate.network.is_of_groups() and args.train_batch_size * args.world_size == 1:
            logger.warning(
                f"The loss {surrogate.config.architecture!r} compares the examples of a group, which is a micro-batch, "
                "but there is one in each, so hardly anything is learned: raise per_device_train_batch_size "
                "(gradient accumulation does not make groups larger)."
            )
        if self.trainer._is_recording and surrogate is None and steps >= state.max_steps:
            logger.warning(
                f"No surrogate will be learned: recording predictions takes {steps} steps, and the run has "
                f"{state.max_steps}. Train for longer, or pass a surrogate that has been learned before."
            )

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        since = state.global_step - trainer.warmup_steps
        # What is learned at the last step would train nothing.
        goes_on = trainer._is_recording and state.global_step < state.max_steps
        if trainer.recorder is None:
            if since == 0:
                config = trainer.surrogate and trainer.surrogate.config
                named = "minimum risk" if config is None else config.origin or f"the surrogate for {config.metric}"
                trainer._tell(f"The warm-up is over: switched at step {state.global_step} to {named}.")
        elif trainer.surrogate is not None:
            since = state.global_step - trainer.learning.switched_at
            if goes_on and since > 0 and since % trainer._refresh_steps == 0:
                trainer.refresh_surrogate()
        elif since >= 0 and goes_on:
            trainer._end_first_stretch()

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.trainer._take_surrogate_of(Path(state.best_model_checkpoint))
