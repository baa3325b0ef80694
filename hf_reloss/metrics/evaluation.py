"""Metrics as modules of `evaluate`, which need no download."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import datasets
import evaluate

from .base import Metric
from .loading import load_metric

NUMBERS = ("wer", "cer")
"""What evaluate gives as a number, not in a dictionary."""


def as_evaluate(metric: Any, **options: Any) -> "MetricModule":
    """A metric as an `evaluate.Metric`, with `compute`, `add`, `add_batch`, and for use in `evaluate.combine`.

    Args:
        metric: what `load_metric` takes.
        options: the metric's, and those of `evaluate.Metric` that say how several processes share their predictions:
            `num_process`, `process_id`, `experiment_id`, `cache_dir`.

    Returns:
        A module. Its `compute` gives what evaluate's module of that name does: a dict with its key or, of `wer` and
        `cer`, a number. Options of the metric can be passed to `compute` as well; predictions are
        `prediction_scores`, too, as where evaluate's module is of scores.

    Example:
        >>> module = as_evaluate("f1", average="macro")
        >>> module.add_batch(predictions=[0, 1, 1], references=[0, 1, 0])
        >>> module.compute()
        {'f1': 0.6666666666666666}
    """
    sharing = {
        key: options.pop(key) for key in ("num_process", "process_id", "experiment_id", "cache_dir") if key in options
    }
    return MetricModule(load_metric(metric, **options), **sharing)


class MetricModule(evaluate.Metric):
    """A `Metric` with the interface of `evaluate.Metric`.

    Args:
        metric: the metric.
        sharing: passed to `evaluate.Metric`.
    """

    def __init__(self, metric: Metric, **sharing: Any):
        self.metric = metric
        # In memory, instances need not wait for each other's file locks.
        super().__init__(keep_in_memory=sharing.get("num_process", 1) == 1, **sharing)

    @property
    def name(self) -> str:
        return self.metric.name

    def _info(self) -> evaluate.MetricInfo:
        # Examples travel as JSON: batches may differ in what datasets would take for types, as [0, 1] and [0.5, 1].
        features = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
        description = f"{self.metric.signature}. {type(self.metric).__doc__ or ''}"
        return evaluate.MetricInfo(description=description, citation="", features=features)

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> Any:
        """The score of what has been taken in, and of predictions and references [n, ...] if there are some.

        Returns:
            A dictionary or, of `wer` and `cer`, a number; None in all processes but the first.
        """
        predictions = options.pop("prediction_scores", predictions)
        found = super().compute(predictions=predictions, references=references, **options)
        return found[self.name] if found is not None and self.name in NUMBERS else found

    def add_batch(self, *, predictions: Any = None, references: Any = None, **unknown: Any) -> None:
        """Takes in predictions and references, [n, ...] each."""
        predictions = unknown.pop("prediction_scores", predictions)
        if isinstance(references, Mapping):  # of arrays
            predictions, references = self.metric.read(predictions, references)
        super().add_batch(predictions=_as_json(predictions), references=_as_json(references), **unknown)

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Takes in one prediction and its reference, which evaluate also calls `predictions` and `references`."""
        prediction = others.pop("predictions", others.pop("prediction_scores", prediction))
        reference = others.pop("references", reference)
        self.add_batch(predictions=[prediction], references=[reference], **others)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
        metric = self.metric
        if options and not dataclasses.is_dataclass(metric):
            raise ValueError(f"{metric.name} takes its options where it is made: as_evaluate(function, ...).")
        if options:
            metric = load_metric(metric.name, **metric.options | options)
        score = metric.compute(*([json.loads(row) for row in rows] for rows in (predictions, references)))
        return {getattr(metric, "evaluate_key", metric.name): score}


def _as_json(values: Any) -> list[str]:
    """Each example as JSON."""
    return [json.dumps(value, default=_plain) for value in values]


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, their numbers as Python's."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double() if value.is_floating_point() else value.cpu()
    return value.tolist()
