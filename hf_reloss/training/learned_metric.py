"""Which metric a run learns: what `metric=` means is known once the first batch has shown what there is to score."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from ..metrics import AdditiveMetric, Metric, load_metric
from ..metrics.adapters import ComputeMetrics, EvaluationMetrics
from ..metrics.base import IGNORED_LABEL
from ..predictions.dataset import scored, text_decoder
from ..predictions.recorder import PredictionRecorder
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from ..surrogates.config import SurrogateConfig
from .arguments import option

logger = logging.get_logger(__name__)

MOST_EVALUATION_BYTES = 2**30
"""Of what is recorded for `compute_metrics`, in each process."""


class FindsMetric:
    """The part of a Trainer that finds out what is learned: a key of `compute_metrics`, or a metric.

    Attributes:
        metric: what is learned, once the first batch has shown what it scores.
        watched_metric: what the loss is to be aligned with, the same.
        recorder: of the predictions to learn from; None with a given surrogate.
    """

    metric: Metric | None
    watched_metric: Metric | None
    recorder: PredictionRecorder | None
    _records_evaluation: bool = False
    _is_of_groups: bool = False

    def _find_metric(self, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> None:
        """Finds out what is to be learned, and watched, from the first batch of a run."""
        if self.metric is None:
            self.metric = self.watched_metric = self._checked_metric(outputs, labels, inputs)

    def _beside(
        self, outputs: Any, inputs: Mapping[str, Any]
    ) -> tuple[float, Mapping[str, Any], dict[str, Any] | None]:
        """What is recorded of a batch beside outputs and labels: stage, inputs, and what compute_metrics would get."""
        stage = self.state.global_step / max(self.state.max_steps, 1)
        return stage, inputs, self._as_evaluated(outputs, inputs) if self._records_evaluation else None

    def _decoding(self, kind: type[Surrogate], metric: Metric) -> Any:
        """What decodes the token ids that a surrogate of a kind records, or None if the metric compares classes."""
        return text_decoder(self.model, kind, metric, self.processing_class, self.data_collator)

    def _score(self, columns: Mapping[str, torch.Tensor]) -> float:
        """The metric of recorded predictions, taken as one group."""
        if isinstance(self.metric, EvaluationMetrics):
            return self.metric.score_one(*self.metric.columns(columns))
        return self.metric.compute(
            *scored(self.recorder.kind, columns, self._decoding(self.recorder.kind, self.metric))
        )

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
            metric = self._metric_of_key(outputs, columns, inputs)
        with torch.random.fork_rng(devices=[]):
            to_learn, _ = self._to_learn(kind, metric)  # of embeddings there is nothing to learn
        self._is_of_groups = not self._approximates and to_learn.network.is_of_groups()
        if isinstance(metric, EvaluationMetrics):
            return metric  # which has been called on this batch
        try:
            metric.compute(*scored(kind, columns, self._decoding(kind, metric)))
        except Exception as error:  # a batch may be too small for it, so this is no more than a sign
            if isinstance(metric, AdditiveMetric):  # which any batch is large enough for
                raise
            logger.warning(
                f"The metric {metric.name!r} cannot score the first batch ({error!r}). If it cannot score groups "
                "either, no surrogate of it can be learned."
            )
        return metric

    def _metric_of_key(self, outputs: Any, columns: dict[str, torch.Tensor], inputs: Mapping[str, Any]) -> Metric:
        """The metric that a word means: the user's own function, if it returns such a key, or one known by name."""
        own, call = self._own_metric(outputs, columns, inputs)
        failed = None
        try:
            keys = call().keys()
        except Exception as error:
            if self.recorder.kind.task == "classification":  # which is reported when it is tried as the metric
                return own
            keys, failed = (), error
        if own.key in keys:
            self._records_evaluation = isinstance(own, EvaluationMetrics)
            return own
        try:
            metric = load_metric(own.key)
        except ValueError as unknown:
            why = f"compute_metrics gives {sorted(keys)}, without {own.key!r}."
            if failed is not None:
                why = f"compute_metrics cannot be called on a training batch: {failed!r}."
            raise ValueError(f"{why} {unknown}") from failed
        if failed is not None:
            self._tell(
                f"compute_metrics cannot be called on a training batch ({failed!r}): what is learned is the metric "
                f"that is known by the name {own.key!r}."
            )
        return metric

    def _own_metric(self, outputs: Any, columns: dict[str, torch.Tensor], inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """The key of `compute_metrics` as a metric, and a call of that function on the first batch."""
        better = self._higher_is_better()
        if self.recorder.kind.task != "classification":
            own = EvaluationMetrics(self.compute_metrics, self._wanted_metric, higher_is_better=better)
            return own, lambda: own.results(*own.columns(self._evaluated_batch(outputs, inputs)))
        passed_over = {"loss", *getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ())}
        own = ComputeMetrics(
            self.compute_metrics,
            self._wanted_metric,
            preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
            higher_is_better=better,
            in_tuple=isinstance(outputs, Mapping) and len(outputs.keys() - passed_over) > 1,
        )
        logits, labels = columns["logits"], columns["labels"]
        counts = labels != IGNORED_LABEL
        return own, lambda: own.results(logits[counts].numpy(), labels[counts].numpy())

    def _evaluated_batch(self, outputs: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What `compute_metrics` would get of a batch, on the host.

        Raises:
            ValueError: if that cannot be recorded.
        """
        found = {name: value.detach().cpu() for name, value in self._as_evaluated(outputs, inputs).items()}
        if not found:
            raise ValueError("what the model puts out is not one tensor with a row per example, or a tuple of these")
        size = sum(value[0].nbytes for value in found.values())
        most = option(self.args, "max_recorded_predictions")
        if size * most > MOST_EVALUATION_BYTES:
            raise ValueError(
                f"it would get {size / 2**20:.1f} MiB for each example, too much to record {most:,} of them: pass "
                "preprocess_logits_for_metrics=, such as lambda logits, labels: logits.argmax(-1)"
            )
        return found

    def _as_evaluated(self, outputs: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What `compute_metrics` would get of a batch, as columns to record."""
        ignored = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"])
        if isinstance(outputs, Mapping):
            found = tuple(value for name, value in outputs.items() if name not in ("loss", *ignored))
        else:
            found = tuple(outputs[1:])
        labels = tuple(inputs[name] for name in self.label_names)
        predictions = found[0] if len(found) == 1 else found
        labels = labels[0] if len(labels) == 1 else labels
        if getattr(self.args, "predict_with_generate", False):  # it gets ids; here they are of the next tokens
            predictions = found[0].argmax(-1)
        elif self.preprocess_logits_for_metrics is not None:
            predictions = self.preprocess_logits_for_metrics(predictions, labels)
        return EvaluationMetrics.recorded(predictions, labels)

    def _higher_is_better(self) -> bool:
        chosen = (self.args.metric_for_best_model or "").removeprefix("eval_")
        if chosen == self._wanted_metric and self.args.greater_is_better is not None:
            return self.args.greater_is_better
        return not self._wanted_metric.endswith("loss")
