"""Fitting decision rules to predictions, by a metric: what is kept of them is the business of `tuning`."""

import functools
import time
from collections.abc import Callable, Sequence

import torch

from ..metrics import AdditiveMetric, Metric
from ..metrics.counts import CountMetric
from .base import DecisionRule
from .calibration import calibrate
from .credit import ExpectedCredit
from .elicitation import MOST_CALLS, ask, confusion_matrix, gradient, is_differentiable
from .thresholds import LabelThresholds

ROUNDS = 4
"""How often the gradient of a metric is taken, each time at the decisions that the last one led to."""

SECONDS, ASKED = 2.0, 2
"""How long a metric that can only be called is asked for credits of all examples, and how often; of their parts as
long again together."""

FOLDS = 5
"""Parts of the examples, each decided by rules that were fitted on the others."""

EXTREMES = 1e-3, 1 - 1e-3
"""Between which probabilities the thresholds of labels are."""

Fit = Callable[[torch.Tensor, torch.Tensor], Sequence[DecisionRule]]
"""From logits and labels to rules."""


def usual_decisions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The class of the highest logit [n]; of several labels, [n, C], those with logits above 0."""
    return (logits > 0).long() if labels.dim() == 2 else logits.argmax(-1)


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
    is_mean = _is_mean(metric, labels, logits.argmax(-1), fitted[-1].credit)
    known = fitted[-1].credit if is_mean else None
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
        credit = _credit(probabilities, labels, metric, seconds)
    return likeliest, ExpectedCredit(temperature, biases, credit)


def _credit(probabilities: torch.Tensor, labels: torch.Tensor, metric: Metric, seconds: float) -> torch.Tensor:
    """What decisions are worth [C, C], more being better; a metric is asked for `seconds` each time."""
    classes, sign = probabilities.shape[-1], 1.0 if metric.higher_is_better else -1.0
    credit = best = torch.eye(classes, dtype=torch.float64)
    highest, is_known = -torch.inf, is_differentiable(metric, classes)
    for _ in range(ROUNDS if is_known else ASKED):
        decided = (probabilities @ credit).argmax(-1)
        if is_known:
            assert isinstance(metric, AdditiveMetric)
            # Probabilities stand for labels: they are less noisy, and as right, once they are calibrated.
            score, slopes = gradient(metric, confusion_matrix(probabilities, decided, classes))
        else:
            score, slopes = _asked(metric, labels, decided, probabilities, seconds)
        if sign * score > highest:
            highest, best = sign * score, credit
        if not is_known and _is_mean(metric, labels, decided, sign * slopes):
            return sign * slopes
        credit = sign * slopes
    return best


def _asked(
    metric: Metric, labels: torch.Tensor, decided: torch.Tensor, probabilities: torch.Tensor, seconds: float
) -> tuple[float, torch.Tensor]:
    """The score of decisions, and what others are worth, as far as `seconds` go."""
    predictions, taken, score = metric.as_predictions(decided, probabilities.shape[-1]), [], 0.0
    for _ in range(3):  # the first call may be slow
        begun = time.perf_counter()
        score = metric.compute(predictions, labels)
        taken.append(time.perf_counter() - begun)
    calls = min(MOST_CALLS, max(probabilities.shape[-1], round(seconds / max(1e-9, min(taken)))))
    return score, ask(metric, labels, decided, probabilities, calls)


def _is_mean(metric: Metric, labels: torch.Tensor, decided: torch.Tensor, credit: torch.Tensor) -> bool:
    """Whether a metric is a mean of credits, as a function may be: then they are the same for all examples."""
    classes, sign = len(credit), 1.0 if metric.higher_is_better else -1.0
    if is_differentiable(metric, classes):
        return False
    right = metric.compute(metric.as_predictions(labels, classes), labels)
    for seed in range(3):
        others = torch.randint(classes, labels.shape, generator=torch.Generator().manual_seed(seed))
        mixed = torch.where(others % 2 == 0, decided, others)
        change = sign * (metric.compute(metric.as_predictions(mixed, classes), labels) - right)
        if abs(change - float(credit[labels, mixed].mean())) > 1e-3 * float(credit.abs().max()):
            return False
    return True
