"""Metrics: what a surrogate learns to rank by. One file per family; `load_metric` finds one by its name."""

from typing import Any

from .adapters import CallableMetric, ComputeMetrics, EvaluateMetric
from .base import AdditiveMetric, GroupwiseMetric, Metric
from .loading import load_metric, metric_of

__all__ = [
    "AdditiveMetric",
    "CallableMetric",
    "ComputeMetrics",
    "EvaluateMetric",
    "GroupwiseMetric",
    "Metric",
    "as_evaluate",
    "load_metric",
    "metric_of",
]


def __getattr__(name: str) -> Any:
    if name != "as_evaluate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .evaluation import as_evaluate  # importing evaluate takes seconds

    return as_evaluate
