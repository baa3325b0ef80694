"""Fitting decision rules to predictions, by a metric: what is kept of them is the business of `tuning`."""

import functools
from collections.abc import Callable, Sequence

import torch

from ..metrics import Metric
from ..metrics.counts import CountMetric
from ..metrics.credits import ROUNDS, SECONDS, credit_matrix, is_mean
from .base import DecisionRule
from .calibration import calibrate
from .credit import ExpectedCredit
from .thresholds import LabelThresholds

FOLDS = 5
"""Parts of the examples, each decided by rules that were fitted on the others."""

EXTREMES = 1e-3, 1 - 1e-3
"""Between which probabilities the thresholds of labels are."""

Fit = Callable[[torch.Tensor, torch.Tensor], Sequence[DecisionRule]]
"""From logits and labels to rules."""


def fitted_rules(
    logits: torch.Tensor, labels: torch.Tensor, metric: Metric, width: float
) -> tuple[Sequence[DecisionRule], Fit]:
    """Rules to decide by, the simpler ones first, and what fits such rules to other examples.

    Args:
        logits, labels, metric: as for `tune_decision`.
        width: of the prior of biases, see `calibrate`.

    Raises:
        ValueError: for several labels and a metric that is none of their counts.
    """
    if labels.dim() == 2:
        of_labels = functools.partial(_of_labels, metric=metric, width=width)
        return of_labels(logits, labels), of_labels
    fitted = _of_classes(logits, labels, metric, width)
    known = fitted[-1].credit if is_mean(metric, labels, logits.argmax(-1), fitted[-1].credit) else None
    # Parts may ask it as long together as all did.
    return fitted, functools.partial(_of_classes, metric=metric, width=width, credit=known, seconds=SECONDS / FOLDS)


def _of_labels(
    logits: torch.Tensor, labels: torch.Tensor, metric: Metric, width: float
) -> tuple[LabelThresholds, LabelThresholds]:
    """Each label that is more likely than not, and each that the metric gains by."""
    if not isinstance(metric, CountMetric):
        raise ValueError(
            f"Thresholds of several labels are tuned by metrics of their counts, such as load_metric('f1', "
            f"average='macro', threshold=0.5), but got {metric.name}."
        )
    temperature, biases = calibrate(logits, labels, width)
    probabilities = (logits / temperature + biases).sigmoid()
    threshold = best = torch.full((logits.shape[-1],), 0.5, dtype=torch.float64)
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
    likely = LabelThresholds(-temperature * biases)
    return likely, LabelThresholds(temperature * (best.logit() - biases))


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
