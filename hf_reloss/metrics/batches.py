"""A Trainer's `compute_metrics` that adds up batches, for `batch_eval_metrics=True`: no predictions are kept."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import EvalPrediction

from .base import AdditiveMetric, Metric
from .loading import load_metric


def batch_compute_metrics(*metrics: "str | Metric | Callable[..., Any]", **options: Any) -> "BatchMetrics":
    """A function for `Trainer(compute_metrics=...)` with `TrainingArguments(batch_eval_metrics=True)`.

    Of each batch only the metrics' statistics are kept, added up on the host, however large an evaluation is.

    Args:
        metrics: what `load_metric` takes, such as names; additive ones.
        options: of the metric, where there is one.

    Returns:
        A function of an `EvalPrediction` and `compute_result`, which gives `{name: score}` at the last batch.

    Raises:
        ValueError: for a metric that is not additive, such as `"roc_auc"`, and for options of several metrics.

    Example:
        >>> compute_metrics = batch_compute_metrics("f1")  # Trainer(..., compute_metrics=compute_metrics)
        >>> compute_metrics(EvalPrediction(torch.eye(2), torch.arange(2)), compute_result=True)
        {'f1': 1.0}
    """
    if not metrics or (options and len(metrics) > 1):
        given = ", ".join(sorted(options)) or "none"
        raise ValueError(
            f"Options are those of one metric, but there are {len(metrics)} metrics, with the options {given}: pass "
            "load_metric(name, ...) for each."
        )
    return BatchMetrics([load_metric(metric, **options) for metric in metrics])


class BatchMetrics:
    """Additive metrics as a `compute_metrics` of batches.

    Args:
        metrics: each `AdditiveMetric`.
    """

    def __init__(self, metrics: list[Metric]):
        self.metrics: list[AdditiveMetric] = []
        for metric in metrics:
            if not isinstance(metric, AdditiveMetric):
                raise ValueError(
                    f"{metric.name} is not a sum over predictions, so batches cannot be added up: pass it to a Trainer "
                    "with batch_eval_metrics=False or, if it scores examples one by one, load_metric(..., "
                    "per_example=True)."
                )
            self.metrics.append(metric)
        self._sums: list[torch.Tensor | None] = [None] * len(self.metrics)

    def __call__(self, evaluation: EvalPrediction, compute_result: bool = False) -> dict[str, float]:
        """Takes in a batch.

        Args:
            evaluation: predictions [N, ...], or a tuple of outputs of which they are the first, and labels [N, ...].
            compute_result: whether it was the last one; what was taken in is forgotten then.

        Returns:
            Scores by the names of the metrics, of all batches so far; nothing before the last one.
        """
        predictions, labels = (
            given[0] if isinstance(given, tuple) else given for given in (evaluation.predictions, evaluation.label_ids)
        )
        for place, metric in enumerate(self.metrics):
            more = metric.statistics(predictions, labels).sum(0).cpu()
            former = self._sums[place]
            self._sums[place] = more if former is None else metric.added(former, more)
        if not compute_result:
            return {}
        sums, self._sums = self._sums, [None] * len(self.metrics)
        return {metric.name: float(metric.score(each)) for metric, each in zip(self.metrics, sums, strict=True)}
