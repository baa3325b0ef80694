"""Metrics: what a surrogate learns to rank by. One file per family; `load_metric` finds one by its name."""

from collections.abc import Callable
from typing import Any

from .adapters import CallableMetric, ComputeMetrics, EvaluateMetric
from .base import AdditiveMetric, GroupwiseMetric, Metric
from .classification import Accuracy

__all__ = [
    "Accuracy",
    "AdditiveMetric",
    "CallableMetric",
    "ComputeMetrics",
    "EvaluateMetric",
    "GroupwiseMetric",
    "Metric",
    "load_metric",
]


def load_metric(metric: "str | Metric | Callable[..., Any]", **options: Any) -> Metric:
    """A metric from its name, from a module of `evaluate`, or from a function.

    Args:
        metric: a name (`"accuracy"`), an `evaluate.EvaluationModule`, a function (predictions, references) -> number
            or dict, or a `Metric`, which is returned as it is.
        options: the metric's own, or those of the adapter: `key`, `higher_is_better`, `class_indices`.

    Raises:
        ValueError: for a name that is not known, with those that are.

    Example:
        >>> load_metric("accuracy").compute([0, 1, 1], [0, 1, 0])
        0.6666666666666666
    """
    if isinstance(metric, Metric):
        if options:
            raise ValueError(f"{metric.name!r} is a metric already, so {', '.join(sorted(options))} cannot be set.")
        return metric
    if isinstance(metric, str):
        known = {kind.name: kind for kind in _named(Metric)}
        if metric not in known:
            raise ValueError(
                f"Unknown metric {metric!r}: known by name are {', '.join(sorted(known))}. Any other one can be passed "
                "as evaluate.load(...), as a function of (predictions, references), or, in a trainer, as the key of "
                "compute_metrics."
            )
        return known[metric](**options)
    if _is_evaluate_module(metric):
        return EvaluateMetric(metric, **options)
    if callable(metric):
        return CallableMetric(metric, **options)
    raise ValueError(f"A metric is a name, a module of evaluate or a function, but this is {type(metric).__name__}.")


def _named(kind: type[Metric]) -> list[type[Metric]]:
    """The metrics that have a name of their own."""
    below = [found for child in kind.__subclasses__() for found in _named(child)]
    return [kind, *below] if isinstance(getattr(kind, "name", None), str) else below


def _is_evaluate_module(metric: Any) -> bool:
    """Whether it is an `evaluate.EvaluationModule`, without the seconds that importing evaluate takes."""
    bases = ((base.__module__.split(".")[0], base.__name__) for base in type(metric).__mro__)
    return ("evaluate", "EvaluationModule") in bases
