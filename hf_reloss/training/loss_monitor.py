"""How well the loss of any Trainer goes with the metric that people look at."""

import itertools
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..learning.alignment import alignment, gathered_columns
from ..metrics import Metric, load_metric
from ..predictions.dataset import recorded_dataset, scored, text_decoder
from ..predictions.models import metric_for
from ..predictions.recorder import PredictionRecorder
from ..surrogates.base import Surrogate

logger = logging.get_logger(__name__)


class Evaluated(NamedTuple):
    """An evaluation.

    Attributes:
        step: at which it was made.
        loss: its `eval_loss`, None if there was none.
        score: the metric of the predictions that were watched.
        alignment: the rank correlation of the negated loss with the metric, over groups of them.
    """

    step: int
    loss: float | None
    score: float
    alignment: float


class LossMetricMonitor(TrainerCallback):
    """A callback of any Trainer that says whether its loss and a metric agree, in every evaluation and at the end.

    It listens to the model's forward passes in evaluation. `eval_alignment` comes into the log: Spearman's rank
    correlation of the negated loss with the metric, over groups of predictions; 1 is perfect. At the end a line says
    how often loss and metric got better together from one evaluation to the next, and which step each of them calls the
    best. Of several data sets to evaluate on, the first counts.

    Args:
        metric: what `load_metric` takes.
        loss: the loss to watch, a `Surrogate`; by default the one that the task is usually trained on.
        processing_class: the tokenizer of a model that writes text; by default the Trainer's.
        max_predictions: of an evaluation, in each process.

    Attributes:
        history: an `Evaluated` of each evaluation.
        verdict: the line that is logged at the end, "" before.

    Example:
        >>> monitor = LossMetricMonitor("f1")  # Trainer(..., callbacks=[monitor], eval_strategy="epoch").train()
        >>> monitor.verdict
        ''
    """

    def __init__(
        self,
        metric: Metric | Any,
        loss: Surrogate | None = None,
        *,
        processing_class: Any = None,
        max_predictions: int = 4_096,
    ):
        self.metric, self.loss, self.processing_class = load_metric(metric), loss, processing_class
        self.max_predictions = max_predictions
        self.history: list[Evaluated] = []
        self.verdict = ""
        self._recorder: PredictionRecorder | None = None
        self._watched: str | None = None
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.history, self.verdict, self._watched = [], "", None
        self.metric = metric_for(model, self.metric)
        self._listen_to(model)

    def _listen_to(self, model: Any) -> None:
        if self._hook is not None:  # of a run that ended in an exception
            self._hook.remove()
        self._recorder = PredictionRecorder(self.max_predictions)

        def listen(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
            if model.training or self._recorder is None:
                return
            try:
                self._recorder.record(model, outputs, kwargs)
            except ValueError as error:  # of a model that no surrogate reads: the evaluation is not lost to this
                self._recorder = None
                logger.warning(f"How loss and {self.metric.name} agree is not measured: {error}")

        self._hook = model.register_forward_hook(listen, with_kwargs=True)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._recorder is None:
            return
        seen, self._recorder = self._recorder, PredictionRecorder(self.max_predictions)
        columns, kind = gathered_columns(seen), seen.kind
        if columns is None or kind is None:
            return
        decoder = text_decoder(model, kind, self.metric, self.processing_class or kwargs.get("processing_class"))
        try:
            score = float(self.metric.compute(*scored(kind, columns, decoder)))
            predictions = recorded_dataset(kind, columns, tokenizer=decoder, metric=self.metric)
            if self.loss is not None:
                self.loss.to(args.device)  # type: ignore[arg-type]  # transformers' decorator hides `self`
            found = alignment(predictions, self.metric, kind, self.loss, device=args.device)
        except Exception as error:  # also of a metric that is somebody's own: an evaluation is not lost to this
            logger.warning(f"The alignment with {self.metric.name} could not be measured: {error!r}")
            return
        name = next((name for name in metrics or {} if name.endswith("_loss")), "eval_loss")
        if self._watched not in (None, name):  # another data set
            return
        self._watched = name
        self.history.append(Evaluated(state.global_step, (metrics or {}).get(name), score, found))
        measured = {f"{name.removesuffix('_loss')}_alignment": found}
        for log in (metrics, state.log_history[-1] if state.log_history else None):
            if log is not None:
                log |= measured | log  # what a ReLossTrainer has measured itself stays

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.verdict = self._verdict()
        if self.verdict and state.is_world_process_zero:
            logger.warning(self.verdict)

    def _verdict(self) -> str:
        """What the evaluations say of loss and metric, in a line; nothing if there are none."""
        if not self.history:
            return ""
        name, last = self.metric.name, self.history[-1]
        ranks = f"over groups of the last evaluation's predictions their rank correlation is {last.alignment:.2f}"
        of_loss = [(each.loss, each) for each in self.history if each.loss is not None]
        if len(of_loss) < 2:
            return f"Loss and {name}: {ranks} (1 is perfect)."
        sign = 1 if self.metric.higher_is_better else -1
        together = sum(
            (loss - next_loss) * sign * (next_one.score - one.score) > 0
            for (loss, one), (next_loss, next_one) in itertools.pairwise(of_loss)
        )
        by_loss = min(of_loss, key=lambda each: each[0])[1]
        by_metric = max((each for _, each in of_loss), key=lambda each: sign * each.score)
        best = f"both are best at step {by_metric.step}"
        if by_loss.step != by_metric.step:
            best = (
                f"the lowest loss is at step {by_loss.step}, with {name} {by_loss.score:.4g}, and the best {name} at "
                f"step {by_metric.step}, {by_metric.score:.4g}"
            )
        return (
            f"Loss and {name}: {ranks} (1 is perfect); from one evaluation to the next they got better or worse "
            f"together {together} of {len(of_loss) - 1} times; {best}."
        )
