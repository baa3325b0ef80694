"""Metrics as modules of `evaluate`, which need no download."""

from typing import Any

import datasets
import evaluate
import numpy as np

from hf_reloss.metrics import load_metric

from .base import Metric


def as_evaluate(metric: Any, **options: Any) -> "MetricModule":
    """A metric as an `evaluate.Metric`, with `compute`, `add`, `add_batch`, and for use in `evaluate.combine`.

    Args:
        metric: what `load_metric` takes.
        options: the metric's, and those of `evaluate.Metric` that say how several processes share their predictions:
            `num_process`, `process_id`, `experiment_id`, `cache_dir`.

    Returns:
        A module whose `compute` gives a dict, with the key that evaluate's module of that name has. Options of the
        metric can be passed to `compute` as well.

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
        # Which features there are is seen from the first batch; a list of alternatives is what evaluate looks into.
        names = datasets.Features(predictions=datasets.Value("null"), references=datasets.Value("null"))
        return evaluate.MetricInfo(
            description=f"{self.metric.signature}. {type(self.metric).__doc__ or ''}", citation="", features=[names]
        )

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> datasets.Features:
        columns = {name: [_plain(value) for value in values] for name, values in batch.items()}
        return _without_null(datasets.Dataset.from_dict(columns).features)

    def _infer_feature_from_example(self, example: dict[str, Any]) -> datasets.Features:
        return self._infer_feature_from_batch({name: [value] for name, value in example.items()})

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
        metric = load_metric(self.metric.name, **{**self.metric.options, **options}) if options else self.metric
        return {getattr(metric, "evaluate_key", metric.name): metric.compute(predictions, references)}


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists."""
    return np.asarray(value).tolist() if hasattr(value, "__array__") else value


def _without_null(features: Any) -> Any:
    """Features in which what was always empty is text."""
    if isinstance(features, dict):
        return type(features)({name: _without_null(feature) for name, feature in features.items()})
    if isinstance(features, datasets.List):
        return datasets.List(_without_null(features.feature))
    return datasets.Value("string") if features == datasets.Value("null") else features
