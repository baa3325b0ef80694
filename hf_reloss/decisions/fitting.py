"""Fitting decision rules to predictions, by a metric: what is kept of them is the business of `tuning`."""

import functools
import time
from collections.abc import Callable, Sequence

import torch

from ..metrics import GroupwiseMetric, Metric
from ..metrics.counts import F1, SEVERAL_LABELS, CountMetric
from ..metrics.credits import ROUNDS, SECONDS, credit_matrix, is_mean
from .base import DecisionRule
from .calibration import calibrate
from .credit import ExpectedCredit
from .cut_points import APART, CutPoints
from .thresholds import LabelThresholds

FOLDS = 5
"""Parts of the examples, each decided by rules that were fitted on the others."""

EXTREMES = 1e-3, 1 - 1e-3
"""Between which probabilities the thresholds of labels are."""

CANDIDATES = 60
"""Places at which a cut point is tried."""

USUAL = [F1(average=average, **SEVERAL_LABELS) for average in ("micro", "macro")]
"""What thresholds of labels are fitted by where the metric is not one of counts."""

Fit = Callable[[torch.Tensor, torch.Tensor], Sequence[DecisionRule]]
"""From logits and labels to rules."""


def fitted_rules(
    logits: torch.Tensor, labels: torch.Tensor, metric: Metric, width: float
) -> tuple[Sequence[DecisionRule], Fit]:
    """Rules to decide by, the simpler ones first, and what fits such rules to other examples.

    Of one number for each example they are cut points between grades.

    Of several labels for each example and a metric that is none of their counts, such as a function, thresholds are
    those that are best for micro-F1 and for macro-F1.

    Args:
        logits, labels, metric: as for `tune_decision`.
        width: of the prior of biases, see `calibrate`.
    """
    if logits.shape[-1] == 1:
        lowest, highest = int(labels.min()), int(labels.max())
        of_values = functools.partial(_of_values, metric=metric, lowest=lowest, highest=highest)
        seconds = SECONDS / FOLDS if isinstance(metric, GroupwiseMetric) else SECONDS
        return of_values(logits, labels), functools.partial(of_values, seconds=seconds)
    if labels.dim() == 2:
        of_examples = getattr(metric, "average", "") == "samples"
        metrics = [metric] if isinstance(metric, CountMetric) and not of_examples else USUAL
        of_labels = functools.partial(_of_labels, metrics=metrics, width=width)
        return of_labels(logits, labels), of_labels
    fitted = _of_classes(logits, labels, metric, width)
    known = fitted[-1].credit if is_mean(metric, labels, logits.argmax(-1), fitted[-1].credit) else None
    # Parts may ask it as long together as all did.
    return fitted, functools.partial(_of_classes, metric=metric, width=width, credit=known, seconds=SECONDS / FOLDS)


def _of_labels(
    logits: torch.Tensor, labels: torch.Tensor, metrics: Sequence[CountMetric], width: float
) -> Sequence[LabelThresholds]:
    """Each label that is more likely than not, and each that one of some metrics gains by."""
    temperature, biases = calibrate(logits, labels, width)
    probabilities = (logits / temperature + biases).sigmoid()
    likely = torch.full((logits.shape[-1],), 0.5, dtype=torch.float64)
    found = [likely, *(_best_thresholds(probabilities, metric, likely) for metric in metrics)]
    return [LabelThresholds(temperature * (threshold.logit() - biases)) for threshold in found]


def _of_values(
    logits: torch.Tensor, labels: torch.Tensor, metric: Metric, lowest: int, highest: int, seconds: float = SECONDS
) -> Sequence[CutPoints]:
    """Cut points by which grades are as frequent as the labels are, and those by which the metric is best."""
    values = logits[:, 0]
    grades = torch.arange(lowest, highest, dtype=torch.float64)
    shares = torch.tensor([float((labels <= grade).double().mean()) for grade in grades], dtype=torch.float64)
    frequent = apart(torch.quantile(values, shares))
    found = _best_cut_points(values, labels, metric, lowest, [frequent, grades + 0.5], seconds)
    return [CutPoints(frequent, lowest), CutPoints(found, lowest)]


def _best_cut_points(
    values: torch.Tensor,
    labels: torch.Tensor,
    metric: Metric,
    lowest: int,
    starts: Sequence[torch.Tensor],
    seconds: float,
) -> torch.Tensor:
    """Cut points [G - 1], from some starts on, each moved to where the metric is best among quantiles of the values."""
    sign = 1.0 if metric.higher_is_better else -1.0
    candidates = torch.quantile(values, torch.linspace(0.005, 0.995, CANDIDATES, dtype=torch.float64))
    clock = time.monotonic() + seconds

    def score(points: torch.Tensor) -> float:
        grades = metric.as_predictions(lowest + torch.searchsorted(points, values), 1)
        found = sign * metric.compute(grades, labels)
        return found if found == found else -torch.inf

    highest, best = max(((score(start), start) for start in starts), key=lambda each: each[0])
    for _ in range(ROUNDS):
        before = highest
        for place in range(len(best)):
            low = best[place - 1] if place else -torch.inf
            high = best[place + 1] if place + 1 < len(best) else torch.inf
            for candidate in candidates[(candidates > low + APART) & (candidates < high - APART)]:
                moved = best.clone()
                moved[place] = candidate
                found = score(moved) if time.monotonic() < clock else -torch.inf
                if found > highest:
                    highest, best = found, moved
        if highest == before:
            break
    return best


def apart(points: torch.Tensor) -> torch.Tensor:
    """Points [n], in order, moved up so that no two are the same."""
    steps = 2 * APART * torch.arange(len(points), dtype=points.dtype)
    return (points - steps).cummax(0).values + steps


def _best_thresholds(probabilities: torch.Tensor, metric: CountMetric, start: torch.Tensor) -> torch.Tensor:
    """The thresholds [L] of probabilities [n, L] by which a metric is expected to be best."""
    threshold = best = start
    highest, sign = -torch.inf, 1.0 if metric.higher_is_better else -1.0
    for _ in range(ROUNDS):
        decided = (probabilities > threshold).double()
        counts = torch.stack([(probabilities * decided).sum(0), decided.sum(0), probabilities.sum(0)]).requires_grad_()
        score = sign * metric.score(counts.flatten())
        (slopes,) = torch.autograd.grad(score, counts)
        if float(score.detach()) > highest:
            highest, best = float(score.detach()), threshold
        # A label is worth p · slope of right + slope of predicted.
        threshold = (-slopes[1] / slopes[0].clamp(min=1e-12)).clamp(*EXTREMES)
    return best


def _of_classes(
    logits: torch.Tensor,
    labels: torch.Tensor,
    metric: Metric,
    width: float,
    credit: torch.Tensor | None = None,
    seconds: float = SECONDS,
) -> tuple[ExpectedCredit, ExpectedCredit]:
    """The most likely class, and the class of the highest expected credit, which may be known already."""
    temperature, biases = calibrate(logits, labels, width)
    likeliest = ExpectedCredit(temperature, biases, torch.eye(logits.shape[-1], dtype=torch.float64))
    probabilities = (logits / temperature + biases).softmax(-1)
    if credit is None:
        credit = credit_matrix(metric, labels, probabilities, seconds)
    return likeliest, ExpectedCredit(temperature, biases, credit)
