"""Scores of the same examples drawn with replacement: how sure a difference of two ways to predict them is."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from ..progress import without_bars
from .base import AdditiveMetric, CollectionMetric, Metric

RESAMPLES, CALLS, SECONDS = 1_000, (40, 200), 2.0
"""Bootstrap samples; of a metric that is called for each, how many at least and at most, and how long at most."""


def bootstrapped(metric: Metric, ways: Sequence[Any], references: Any, number: int, seed: int = 0) -> torch.Tensor:
    """The scores [k, samples] float64 of k ways to predict n examples, on the same bootstrap samples of them.

    Args:
        metric: scores a sample; where it is not defined, the score is 0.
        ways: the predictions of each, as `Metric.compute` takes them.
        references: of the n examples.
        number: n.
        seed: of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(metric, AdditiveMetric | CollectionMetric):
        begun = time.perf_counter()
        metric.score_groups(ways[0], references, torch.arange(number)[None])
        fewest, most = CALLS
        affordable = round(SECONDS / len(ways) / max(1e-9, time.perf_counter() - begun))
        index = torch.randint(number, (min(most, max(fewest, affordable)), number), generator=generator)
        with without_bars():
            return torch.stack([metric.score_groups(way, references, index) for way in ways]).nan_to_num()
    statistics = [metric.statistics(way, references).cpu() for way in ways]
    parts = []
    for _ in range(0, RESAMPLES, 50):  # for memory
        drawn = torch.randint(number, (50, number), generator=generator)
        times = torch.zeros(50, number, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        parts.append(torch.stack([metric.score(times @ of_each) for of_each in statistics]))
    return torch.cat(parts, dim=1).nan_to_num()


def interval(differences: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of bootstrapped differences [samples]."""
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=differences.dtype)).tolist()
    return low, high
