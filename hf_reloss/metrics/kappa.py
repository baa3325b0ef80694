"""Agreement beyond chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from .base import IGNORED_LABEL, LATER
from .classification import ClassMetric
from .counts import histograms, marked

MOST_CLASSES = 1_000
"""Of more, a confusion matrix of each example is beyond what fits in memory."""


@dataclass(frozen=True)
class CohenKappa(ClassMetric):
    """Agreement beyond chance, as `sklearn.metrics.cohen_kappa_score`; at most 1, nan where there is one class only.

    Statistics: [N, C²], the confusion matrix, labels by decisions; C is the number of `labels` or, without these, one
    more than the largest class. Scores of groups take no more classes than occur, however large their numbers.

    Args:
        weights: None, or how much it costs to be off by a number of classes: "linear" or "quadratic" (QWK).
        labels: the classes, in their order, by which their distance is counted; an example with another one does not
            count. By default those that occur in the group, so that a grade that nobody has brings its neighbours
            nearer to each other.
    """

    name: ClassVar[str] = "cohen_kappa"
    weights: str | None = None
    labels: Sequence[int] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.weights not in (None, "linear", "quadratic"):
            raise ValueError(f"{self.name}: weights is None, 'linear' or 'quadratic', but got {self.weights!r}.")
        if self.labels is None:
            return
        labels = tuple(int(label) for label in self.labels)  # also of an array
        if not labels or len(set(labels)) < len(labels) or IGNORED_LABEL in labels:
            raise ValueError(
                f"{self.name}: labels are classes that differ, in their order, without {IGNORED_LABEL}, but got "
                f"{list(labels)}."
            )
        object.__setattr__(self, "labels", labels)

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        if self.labels is not None:
            return super().score_groups(predictions, references, index)
        predictions, references = self.read(predictions, references)
        counts = references != IGNORED_LABEL
        if ((predictions < 0) | (references < 0))[counts].any():
            return super().score_groups(predictions, references, index)  # which says so
        both = torch.stack([predictions.long(), references]).masked_fill(~counts, -1)
        occurring, places = both.unique(return_inverse=True)
        places = places - int((occurring < 0).any())
        # Those that occur keep their order, which is all that counts.
        decided, wanted = places.masked_fill(~counts, 0)[0], places[1].masked_fill(~counts, IGNORED_LABEL)
        return super().score_groups(decided, wanted, index)

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        known = 0
        if self.labels is not None:
            known = len(self.labels)
            placed = [_places(values, self.labels) for values in (predictions, references)]
            beyond = (placed[0] < 0) | (placed[1] < 0) | (references == IGNORED_LABEL)
            predictions, references = placed[0].clamp(min=0), placed[1].masked_fill(beyond, IGNORED_LABEL)
        predictions, references, classes = marked(predictions, references, known, self.name)
        if classes > MOST_CLASSES:
            raise ValueError(
                f"{self.name} would lay out {classes:,}² numbers for each example, for the largest class is "
                f"{classes - 1:,}: pass labels=, the classes that there are, in their order."
            )
        cell = torch.where(references < 0, -1, references * classes + predictions)
        return histograms(cell, torch.arange(len(cell), device=cell.device)[:, None], classes**2)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        confusion = sums.unflatten(-1, (math.isqrt(sums.shape[-1]), -1))
        wanted, predicted = confusion.sum(-1), confusion.sum(-2)
        if self.weights is None:
            cost = 1 - torch.eye(wanted.shape[-1], dtype=sums.dtype, device=sums.device)
        else:
            occurs = torch.ones_like(wanted) if self.labels is not None else (wanted + predicted) > 0
            position = occurs.cumsum(-1).to(sums.dtype)
            cost = (position[..., :, None] - position[..., None, :]).abs() ** (1 if self.weights == "linear" else 2)
        expected = wanted[..., :, None] * predicted[..., None, :] / wanted.sum(-1)[..., None, None]
        return 1 - (cost * confusion).sum((-1, -2)) / (cost * expected).sum((-1, -2))


def _places(values: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """The places of values [...] among labels, -1 for others."""
    ordered, order = torch.tensor(labels, device=values.device).sort()
    found = torch.searchsorted(ordered, values.long().contiguous()).clamp(max=len(labels) - 1)
    return torch.where(ordered[found] == values, order[found], -1)
