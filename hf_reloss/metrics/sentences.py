"""A metric of each text by itself, where usually it is one of many together."""

from collections.abc import Sequence
from typing import Any

import torch

from ..progress import without_bars
from .base import Metric
from .loading import load_metric

SMOOTHED = {"smooth": True, "use_effective_order": True}
"""Options of BLEU, of evaluate and of sacrebleu: a sentence seldom has a match of each order."""


def metric_of_each(metric: Metric | Any) -> Metric:
    """A metric that is to score each text by itself: BLEU is smoothed, where it was left as it is.

    Args:
        metric: what `load_metric` takes.
    """
    return load_metric(metric).informed(SMOOTHED)


def score_each(metric: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> torch.Tensor:
    """Scores [n] float64 of n predictions, each by itself, in one call; nan where there is none.

    Args:
        metric: of texts; one that is additive counts all of them at once.
        predictions, references: n each, as `Metric.compute` takes them.
    """
    if not len(predictions):
        return torch.zeros(0, dtype=torch.float64)
    with without_bars():
        return metric.score_groups(predictions, references, torch.arange(len(predictions))[:, None])
