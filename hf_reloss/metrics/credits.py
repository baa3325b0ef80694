"""What each confusion of two classes is worth to a metric: its gradient in the confusion matrix, or asked of it."""

import statistics
import time

import torch
import torch.nn.functional as F

from .base import AdditiveMetric, Metric
from .classification import Accuracy, grades
from .counts import CountMetric
from .curves import CurveMetric

MOST_CLASSES = 2_000
"""The most of which pairs are told apart: of more there is hardly an example of each, and a matrix fills the memory."""

MOST_LAID_OUT = 128
"""Of this many at most, statistics of all pairs of a label and a decision are laid out."""

MOST_CALLS = 10_000
"""How often a metric that is not additive is called at most; of more pairs, those that are confused most."""

SHARE = 0.1
"""Of the examples of a class, the share that is decided otherwise to ask what that is worth."""

ROUNDS = 4
"""How often the gradient of a metric is taken, each time at the decisions that the last one led to."""

SECONDS, ASKED = 2.0, 2
"""How long a metric that can only be called is asked for credits, and how often."""


def usual_decisions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The class of the highest logit [n]; of several labels, [n, C], those with logits above 0; of one number for each
    example, [n, 1], the grade that it is rounded to."""
    if logits.shape[-1] == 1 and labels.dim() == 1:
        return grades(logits[:, 0], labels)
    return (logits > 0).long() if labels.dim() == 2 else logits.argmax(-1)


def judges_decisions(metric: Metric, logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether a metric sees no more of logits [n, C] than which is the highest, as accuracy does and ROC AUC does not;
    of numbers [n, 1] no more than what they are rounded to.

    Args:
        metric: of logits and labels.
        logits, labels: some examples.
    """
    ways = [usual_decisions(logits, labels)]
    if logits.shape[-1] == 1 and labels.dim() == 1:
        ways.append(logits[:, 0].round().long())  # a function need not know the range of grades
    try:
        score = metric.compute(logits, labels)
        found = [metric.compute(metric.as_predictions(way, logits.shape[-1]), labels) for way in ways]
    except Exception:  # of somebody's own function, too
        return False
    return any(abs(score - each) < 1e-9 for each in found)


def minds_confusions(metric: Metric) -> bool:
    """Whether one confusion may be worse to a metric than another: it is not to accuracy, F1 or ROC AUC."""
    return not isinstance(metric, CountMetric | Accuracy | CurveMetric)


def is_differentiable(metric: Metric, classes: int) -> bool:
    """Whether `gradient` can be taken of a metric of this many classes."""
    most = MOST_CLASSES if isinstance(metric, CountMetric) else MOST_LAID_OUT
    return isinstance(metric, AdditiveMetric) and classes <= most


def gradient(metric: AdditiveMetric, confusion: torch.Tensor) -> tuple[float, torch.Tensor]:
    """A metric of a confusion matrix, and how it rises with each of its cells.

    Args:
        metric: of class decisions.
        confusion: [C, C] float64, of labels and decisions; it need not be of whole numbers.

    Returns:
        The score, and [C, C] float64, 0 for right decisions.
    """
    cells = confusion.clone().requires_grad_()
    if isinstance(metric, CountMetric):
        sums = torch.cat([cells.diagonal(), cells.sum(0), cells.sum(1)])
    else:
        every = torch.arange(len(cells))
        pairs = torch.cartesian_prod(every, every)  # of a label and a decision
        sums = cells.flatten() @ metric.statistics(metric.as_predictions(pairs[:, 1], len(cells)), pairs[:, 0])
    score = metric.score(sums)
    (slopes,) = torch.autograd.grad(score, cells)
    slopes = (confusion.sum() * slopes).nan_to_num()
    return float(score.detach()), slopes - slopes.diagonal()[:, None]


def ask(
    metric: Metric, labels: torch.Tensor, decided: torch.Tensor, probabilities: torch.Tensor, calls: int = MOST_CALLS
) -> torch.Tensor:
    """What decisions are worth to a metric that can only be called.

    Of each class, some examples are decided for each other class, and the change of the score is what that is worth. Of
    a mean of credits these are found exactly, of another function their differences around these decisions.

    Args:
        metric: of class decisions.
        labels: [n] int64.
        decided: [n] int64.
        probabilities: [n, C] of the classes, by which it is known which of them are confused.
        calls: how often the metric is called at most, about.

    Returns:
        [C, C] float64, 0 for right decisions. What is not asked, for there are too many pairs, or no example, is the
        mean of what is: of the same class, if there is any.
    """
    classes = probabilities.shape[-1]
    confused = (probabilities.T @ probabilities).fill_diagonal_(0.0)
    asked = torch.zeros(classes, classes, dtype=torch.bool)
    asked.view(-1)[confused.flatten().argsort(descending=True, stable=True)[:calls]] = True
    found = torch.full((classes, classes), torch.nan, dtype=torch.float64)
    for label in range(classes):
        rows = (labels == label).nonzero()[:, 0]
        others = [other for other in asked[label].nonzero()[:, 0].tolist() if other != label]
        if not len(rows) or not others:
            continue
        rows = rows[: max(1, round(SHARE * len(rows)))]
        scores = {}
        for other in (label, *others):
            changed = decided.clone()
            changed[rows] = other
            scores[other] = metric.compute(metric.as_predictions(changed, classes), labels)
        for other in others:
            found[label, other] = (scores[other] - scores[label]) * len(labels) / len(rows)
    found = torch.where(found.isnan(), found.nanmean(-1, keepdim=True), found)
    return torch.where(found.isnan(), found.nanmean().nan_to_num(), found).fill_diagonal_(0.0)


def confusion_matrix(labels: torch.Tensor, decided: torch.Tensor, classes: int) -> torch.Tensor:
    """[C, C] float64 of labels and decisions, each [n] int64, or probabilities [n, C] of them."""
    parts = (part if part.dim() == 2 else F.one_hot(part, classes).double() for part in (labels, decided))
    of_labels, of_decisions = parts
    return of_labels.T @ of_decisions


def credit_matrix(
    metric: Metric, labels: torch.Tensor, probabilities: torch.Tensor, seconds: float = SECONDS
) -> torch.Tensor:
    """What each decision is worth, by label: for a mean of credits exactly, of other metrics where decisions lead to.

    Args:
        metric: of class decisions.
        labels: [n] int64.
        probabilities: [n, C] float64 of the classes.
        seconds: for which a metric is asked, each time, that can only be called.

    Returns:
        [C, C] float64, more being better.
    """
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
        if not is_known and is_mean(metric, labels, decided, sign * slopes):
            return sign * slopes
        credit = sign * slopes
    return best


def confusion_costs(
    metric: Metric, labels: torch.Tensor, probabilities: torch.Tensor, seconds: float = SECONDS
) -> torch.Tensor:
    """What it costs to decide for a class instead of the label, in units of what a confusion costs on average.

    Args:
        metric: of class decisions.
        labels: [n] int64.
        probabilities: [n, C] float64 of the classes, by which it is known how often each confusion would happen.
        seconds: as of `credit_matrix`.

    Returns:
        [C, C] float64, 0 for right decisions and for confusions that the metric does not mind.
    """
    credit = credit_matrix(metric, labels, probabilities, seconds)
    costs = (credit.diagonal()[:, None] - credit).clamp(min=0)
    confused = confusion_matrix(labels, probabilities, len(credit)).fill_diagonal_(0.0)
    average = (costs * confused).sum() / confused.sum()
    return (costs / average).nan_to_num(posinf=0.0)


def _asked(
    metric: Metric, labels: torch.Tensor, decided: torch.Tensor, probabilities: torch.Tensor, seconds: float
) -> tuple[float, torch.Tensor]:
    """The score of decisions, and what others are worth, as far as `seconds` go."""
    predictions, taken, score = metric.as_predictions(decided, probabilities.shape[-1]), [], 0.0
    for _ in range(3):  # the first call may be slow
        begun = time.perf_counter()
        score = metric.compute(predictions, labels)
        taken.append(time.perf_counter() - begun)
    affordable = round(seconds / max(1e-9, statistics.median(taken)))
    calls = min(MOST_CALLS, max(probabilities.shape[-1], affordable))
    return score, ask(metric, labels, decided, probabilities, calls)


def is_mean(metric: Metric, labels: torch.Tensor, decided: torch.Tensor, credit: torch.Tensor) -> bool:
    """Whether a metric is the mean of these credits [C, C], as a function may be: they are right for all examples."""
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
