"""Metrics as modules of `evaluate`, which need no download."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from .base import Metric
from .loading import load_metric, metrics_of_module

NUMBERS = ("wer", "cer")
"""What evaluate gives as a number, not in a dictionary."""

SHARING = ("cache_dir", "experiment_id", "keep_in_memory", "num_process", "process_id", "seed", "timeout")
"""Options of `evaluate.Metric`."""


def as_evaluate(metric: Any, **options: Any) -> "MetricModule":
    """A metric as an `evaluate.Metric`, with `compute`, `add`, `add_batch`, and for use in `evaluate.combine`.

    Args:
        metric: what `load_metric` takes, or the name of a module of evaluate that gives several scores: `"rouge"`,
            `"squad"`.
        options: the metric's, and those of `evaluate.Metric`: `num_process`, `process_id`, `experiment_id`,
            `cache_dir` and `timeout` say how several processes share their predictions; `seed` and `keep_in_memory`
            change nothing, for nothing is drawn, and one process keeps all in memory.

    Returns:
        A module. Its `compute` gives what evaluate's module of that name does: a dict with its keys (of `seqeval` also
        the scores of each type, of `mean_iou` those of each class) or, of `wer` and `cer`, a number. Options of the
        metric can be passed to `compute` as well; predictions are `prediction_scores`, too, as where evaluate's module
        is of scores.

    Example:
        >>> module = as_evaluate("f1", average="macro")
        >>> module.add_batch(predictions=[0, 1, 1], references=[0, 1, 0])
        >>> module.compute()
        {'f1': 0.6666666666666666}
    """
    sharing = {key: options.pop(key) for key in SHARING if key in options}
    several = metrics_of_module(metric, options) if isinstance(metric, str) else []
    if several:
        return MetricModule(several, metric, **sharing)
    return MetricModule([load_metric(metric, **options)], **sharing)


class MetricModule(evaluate.Metric):
    """Metrics with the interface of `evaluate.Metric`.

    Args:
        metrics: one, or those that make up a module.
        name: of the module; that of the metric by default.
        sharing: passed to `evaluate.Metric`.
    """

    def __init__(self, metrics: Sequence[Metric], name: str | None = None, **sharing: Any):
        self.metrics, self._name = list(metrics), name or metrics[0].name
        self._taken: list[tuple[Any, Any]] = []
        # In memory, instances need not wait for each other's file locks.
        super().__init__(**sharing | {"keep_in_memory": sharing.get("num_process", 1) == 1})

    @property
    def name(self) -> str:
        return self._name

    def _info(self) -> evaluate.MetricInfo:
        # Examples travel as JSON: batches may differ in what datasets would take for types, as [0, 1] and [0.5, 1].
        features = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
        description = "\n".join(f"{metric.signature}. {type(metric).__doc__ or ''}" for metric in self.metrics)
        return evaluate.MetricInfo(description=description, citation="", features=features)

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> Any:
        """The score of what has been taken in, and of predictions and references [n, ...] if there are some.

        Returns:
            A dictionary or, of `wer` and `cer`, a number; None in all processes but the first.

        Raises:
            ValueError: if there is nothing to score, or predictions without references.
        """
        predictions = options.pop("prediction_scores", predictions)
        if self.num_process > 1:
            found = super().compute(predictions=predictions, references=references, **options)
        else:
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            if not self._taken:
                raise ValueError(f"{self.name} has nothing to score: pass predictions and references.")
            taken, self._taken = self._taken, []
            found = self._compute(*map(_joined, zip(*taken, strict=True)), **options)
        return found[self.name] if found is not None and self.name in NUMBERS else found

    def add_batch(self, *, predictions: Any = None, references: Any = None, **unknown: Any) -> None:
        """Takes in predictions and references, [n, ...] each."""
        predictions = unknown.pop("prediction_scores", predictions)
        if unknown or predictions is None or references is None:
            both = {"predictions": predictions, "references": references}
            given = ", ".join([name for name, value in both.items() if value is not None] + sorted(unknown))
            raise ValueError(
                f"{self.name} takes predictions (or prediction_scores) and references, but got {given or 'neither'}."
            )
        if isinstance(references, Mapping):  # of arrays
            predictions, references = self.metrics[0].read(predictions, references)
        if len(predictions) != len(references):
            raise ValueError(
                f"{self.name} wants one reference per prediction, but got {len(predictions)} predictions and "
                f"{len(references)} references."
            )
        if self.num_process > 1:
            super().add_batch(predictions=_as_json(predictions), references=_as_json(references))
        else:
            self._taken.append((_kept(predictions), _kept(references)))

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Takes in one prediction and its reference, which evaluate also calls `predictions` and `references`."""
        prediction = others.pop("predictions", others.pop("prediction_scores", prediction))
        reference = others.pop("references", reference)
        self.add_batch(predictions=[prediction], references=[reference], **others)

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        if self.num_process > 1:
            predictions, references = ([json.loads(row) for row in rows] for rows in (predictions, references))
        found: dict[str, Any] = {}
        for metric in self.metrics:
            if options and not dataclasses.is_dataclass(metric):
                raise ValueError(f"{metric.name} takes its options where it is made: as_evaluate(function, ...).")
            asked = load_metric(metric.name, **metric.options | options) if options else metric
            found |= asked.evaluated(predictions, references)
        return found


def _kept(values: Any) -> Any:
    """A copy of a batch, on the host."""
    if torch.is_tensor(values):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy().copy()
    return values.copy() if isinstance(values, np.ndarray) else list(values)


def _joined(parts: Sequence[Any]) -> Any:
    """Batches as one: an array where they are arrays that fit together, else a list."""
    if len(parts) == 1:
        return parts[0]
    shapes = {part.shape[1:] if isinstance(part, np.ndarray) else None for part in parts}
    if len(shapes) == 1 and None not in shapes:
        return np.concatenate(parts)
    return [row for part in parts for row in (part.tolist() if isinstance(part, np.ndarray) else part)]


def _as_json(values: Any) -> list[str]:
    """Each example as JSON."""
    return [json.dumps(value, default=_plain) for value in values]


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, their numbers as Python's."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double() if value.is_floating_point() else value.cpu()
    return value.tolist()
