"""Fitting a decision rule by a metric, and keeping it only if it gains on examples that it was not fitted on."""

from typing import Any, NamedTuple

import torch

from ..metrics import AdditiveMetric, Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from .base import DecisionRule
from .offsets import ClassOffsets

FOLDS, RESAMPLES, FEWEST = 5, 1_000, 50
"""Parts of the examples, each decided by rules that were fitted on the others; bootstrap samples; examples at least."""


class TunedDecision(NamedTuple):
    """What tuning a decision has come to.

    Attributes:
        rule: the rule; None if argmax is kept, for no gain could be told from chance.
        before: the metric of argmax.
        after: that of rules on examples that they were not fitted on.
        low, high: of the difference, its 95 % interval by a paired bootstrap.
        examples: how many there are.
        metric: its name.
    """

    rule: DecisionRule | None
    before: float
    after: float
    low: float
    high: float
    examples: int
    metric: str

    def __str__(self) -> str:
        gain = f"{self.after - self.before:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        kept = f"gained {gain} {self.metric}" if self.rule is not None else f"argmax is kept: {gain} {self.metric}"
        return f"decision: {kept}, cross-fitted on {self.examples:,} held-out examples ({self.before:.4f} before)"


def tune_decision(logits: torch.Tensor, labels: torch.Tensor, metric: Metric | Any, *, seed: int = 0) -> TunedDecision:
    """Fits offsets of classes by a metric.

    Five rules are fitted, each on four fifths of the examples, and decide the other fifth. What is kept is the mean of
    them, if these decisions are better than argmax: if a paired bootstrap's 95 % interval of the gain is above 0.

    Args:
        logits: [n, C] float, of examples that the model has not been trained on.
        labels: [n] int64, -100 where it does not count.
        metric: of class decisions, as `load_metric` takes it.
        seed: of the parts and the bootstrap.

    Raises:
        ValueError: for logits or labels of another shape, labels out of range, or fewer than 50 examples.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"A decision is tuned on logits [n, C] and labels [n], but got {list(logits.shape)} and "
            f"{list(labels.shape)}."
        )
    metric, counts = load_metric(metric), labels != IGNORED_LABEL
    logits, labels = logits[counts].double().cpu(), labels[counts].long().cpu()
    if len(labels) < FEWEST:
        raise ValueError(f"{len(labels)} examples are too few to tune a decision on: {FEWEST} or more.")
    if labels.min() < 0 or labels.max() >= logits.shape[-1]:
        raise ValueError(
            f"Labels must be 0 to {logits.shape[-1] - 1}, or -100 to be ignored, but they are {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    generator = torch.Generator().manual_seed(seed)
    part = torch.randperm(len(labels), generator=generator) % FOLDS
    decided, usual, offsets = torch.empty_like(labels), logits.argmax(-1), []
    for fold in range(FOLDS):
        fitted = ClassOffsets.fit(logits[part != fold], labels[part != fold], metric)
        decided[part == fold] = fitted.decide(logits[part == fold])
        offsets.append(fitted.offsets)
    sign = 1.0 if metric.higher_is_better else -1.0
    gains = sign * _bootstrapped(decided, usual, labels, metric, generator)
    low, high = gains.quantile(torch.tensor([0.025, 0.975], dtype=gains.dtype)).tolist()
    before, after = (float(metric.compute(chosen, labels)) for chosen in (usual, decided))
    rule = ClassOffsets(torch.stack(offsets).mean(0).tolist()) if low > 0 else None
    bounds = (low, high) if sign > 0 else (-high, -low)
    return TunedDecision(rule, before, after, *bounds, len(labels), metric.name)


def _bootstrapped(
    decided: torch.Tensor, usual: torch.Tensor, labels: torch.Tensor, metric: Metric, generator: torch.Generator
) -> torch.Tensor:
    """Differences [resamples] of a metric of two ways to decide, of the same examples drawn with replacement."""
    number = len(labels)
    if isinstance(metric, AdditiveMetric):
        statistics = [metric.statistics(each, labels) for each in (decided, usual)]
        parts = []
        for _ in range(0, RESAMPLES, 50):  # for memory
            chosen = torch.randint(number, (50, number), generator=generator)
            weights = torch.zeros(50, number, dtype=torch.float64)
            weights.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
            ours, theirs = (metric.score(weights @ of_each) for of_each in statistics)
            parts.append(ours - theirs)
        return torch.cat(parts).nan_to_num()
    found = []
    for _ in range(RESAMPLES // 5):
        rows = torch.randint(number, (number,), generator=generator)
        found.append(metric.compute(decided[rows], labels[rows]) - metric.compute(usual[rows], labels[rows]))
    return torch.tensor(found, dtype=torch.float64).nan_to_num()
