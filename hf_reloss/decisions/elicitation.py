"""What each confusion of two classes is worth to a metric: its gradient in the confusion matrix, or asked of it."""

import torch
import torch.nn.functional as F

from ..metrics import AdditiveMetric, Metric
from ..metrics.counts import CountMetric

MOST_CLASSES = 128
"""Of this many at most, statistics of all pairs of a label and a decision are laid out."""

MOST_CALLS = 10_000
"""How often a metric that is not additive is called at most; of more pairs, those that are confused most."""

SHARE = 0.1
"""Of the examples of a class, the share that is decided otherwise to ask what that is worth."""


def is_differentiable(metric: Metric, classes: int) -> bool:
    """Whether `gradient` can be taken of a metric of this many classes."""
    return isinstance(metric, CountMetric) or (isinstance(metric, AdditiveMetric) and classes <= MOST_CLASSES)


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
        sums = cells.flatten() @ metric.statistics(pairs[:, 1], pairs[:, 0])
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
    """[C, C] float64 of labels, [n] int64 or probabilities [n, C], and decisions [n] int64."""
    of_labels = labels if labels.dim() == 2 else F.one_hot(labels, classes).double()
    return of_labels.T @ F.one_hot(decided, classes).double()
