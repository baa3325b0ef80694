"""Fitting a decision rule by a metric, and keeping it only if it gains on examples that it was not fitted on."""

from typing import Any

import torch

from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..metrics.bootstrap import bootstrapped, interval
from ..metrics.counts import SEVERAL_LABELS
from ..metrics.credits import MOST_CLASSES, judges_decisions, usual_decisions
from .base import DecisionRule, Tuned
from .calibration import best_width
from .fitting import FOLDS, fitted_rules

FEWEST = 50
"""Examples at least."""

MOST_GRADES = 20
"""Of one number for each example, between which cut points are sought."""

SURE = 0.84
"""The share of bootstrap samples in which a rule has to gain: a gain of one standard error."""


class TunedDecision(Tuned[DecisionRule]):
    """What tuning the decision of a classifier has come to: `before` is of argmax, or of one number of rounding."""


def tune_decision(logits: torch.Tensor, labels: torch.Tensor, metric: Metric | Any, *, seed: int = 0) -> TunedDecision:
    """Fits a decision rule by a metric.

    Two rules are tried: the most likely class by calibrated probabilities, with a bias for each class, and the class of
    the highest expected credit, for a credit matrix that is the metric's gradient or, of a function, asked of it. Each
    is fitted on four fifths of the examples and decides the other fifth, five times over. The first is kept if it is
    better than argmax, the second if it is better than what was kept: in 84 % of a paired bootstrap's samples, a gain
    of one standard error. What is kept is fitted again on all examples.

    Where examples have several labels each, the rules are thresholds of labels: of calibrated probabilities, one half
    and those by which the metric is best or, of a metric that is none of counts per label, micro-F1 and macro-F1.

    Where the model puts out one number for each example, and the metric is one of grades, the rules are cut points
    between grades in place of rounding: those by which grades are as frequent as the labels, and those by which the
    metric is best.

    Args:
        logits: [n, C] float, of examples that the model has not been trained on; of one number each, [n, 1] or [n].
        labels: [n] int64, -100 where it does not count (of one number each also floats, which are rounded); or several
            for each example, [n, C], 0 or 1.
        metric: of decisions, as `load_metric` takes it.
        seed: of the parts and the bootstrap.

    Raises:
        ValueError: for logits or labels of another shape, labels out of range, fewer than 50 examples, more than 2,000
            classes of which one is decided for, or a metric of something else than class decisions.
    """
    metric = load_metric(metric)
    logits, labels = _checked(logits, labels)
    metric = metric.informed(SEVERAL_LABELS) if labels.dim() == 2 else metric
    of_grades = logits.shape[-1] == 1
    metric = metric.informed({"of_grades": True}) if of_grades else metric
    if not judges_decisions(metric, logits, labels):
        # What it cannot score at all it refuses itself, such as three classes where it is for two.
        metric.compute(logits, labels)
        raise ValueError(
            f"{metric.name} scores logits, or something else than which class is decided for, so there is no decision "
            "to tune by it: pass metric= one of class decisions, such as 'accuracy' or 'f1'."
        )
    part = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % FOLDS
    width = 0.0 if of_grades else best_width(logits, labels, seed)  # chosen by likelihood: the same for all parts
    fitted, fit = fitted_rules(logits, labels, metric, width)
    decided = [usual_decisions(logits, labels), *(torch.empty_like(labels) for _ in fitted)]
    for fold in range(FOLDS):
        rules = fit(logits[part != fold], labels[part != fold])
        for chosen, rule in zip(decided[1:], rules, strict=True):
            chosen[part == fold] = rule.decide(logits[part == fold])
    sign = 1.0 if metric.higher_is_better else -1.0
    ways = [metric.as_predictions(chosen, logits.shape[-1]) for chosen in decided]
    scores = sign * bootstrapped(metric, ways, labels, len(labels), seed)
    kept = 0
    for candidate in range(1, len(decided)):
        if (scores[candidate] > scores[kept]).double().mean() >= SURE:
            kept = candidate
    shown = kept or len(fitted)
    before, after = (metric.compute(ways[chosen], labels) for chosen in (0, shown))
    low, high = interval(sign * (scores[shown] - scores[0]))
    found = fitted[kept - 1] if kept else None
    return TunedDecision(found, before, after, low, high, len(labels), metric.name, decided[kept], fitted[-1])


def _checked(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, as float64, and labels of the examples that count.

    Raises:
        ValueError: as `tune_decision`.
    """
    if logits.shape == labels.shape[:1]:
        logits = logits[:, None]
    if logits.dim() == 2 and logits.shape[-1] == 1:
        labels = labels.reshape(len(labels), -1).squeeze(-1).round()
    several = labels.shape == logits.shape
    if logits.dim() != 2 or not (several or labels.shape == logits.shape[:1]):
        raise ValueError(
            "A decision is tuned on logits [n, C] and labels [n], or several labels for each example, [n, C], but got "
            f"{list(logits.shape)} and {list(labels.shape)}."
        )
    if logits.shape[-1] > MOST_CLASSES and not several:
        raise ValueError(
            f"A decision is tuned among {MOST_CLASSES:,} classes at most, but the model has {logits.shape[-1]:,}: "
            "leave it at argmax (tune_decision=False), or train for fewer classes."
        )
    counts = labels != IGNORED_LABEL
    counts = counts.all(-1) if several else counts
    logits, labels = logits[counts].double().cpu(), labels[counts].long().cpu()
    if len(labels) < FEWEST:
        raise ValueError(f"{len(labels)} examples are too few to tune a decision on: {FEWEST} or more.")
    if logits.shape[-1] == 1:
        return _checked_grades(logits, labels)
    largest = 1 if several else logits.shape[-1] - 1
    if labels.min() < 0 or labels.max() > largest:
        raise ValueError(
            f"Labels must be 0 to {largest}, or -100 to be ignored, but they are {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    return logits, labels


def _checked_grades(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [n, 1] and grades [n]; raises ValueError for grades of which there is one, or more than there may be."""
    number = int(labels.max() - labels.min()) + 1
    if not 2 <= number <= MOST_GRADES:
        raise ValueError(
            f"Cut points are tuned between 2 to {MOST_GRADES} grades, but the labels, rounded, are "
            f"{int(labels.min())} to {int(labels.max())}: leave the decision at rounding (tune_decision=False)."
        )
    return logits, labels
