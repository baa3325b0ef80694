"""Areas under curves over all thresholds. They are not sums over predictions: each group is sorted, all at once."""

import abc
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..ranking import hard_rank
from .base import IGNORED_LABEL, LATER, Metric
from .probabilities import are_probabilities


@dataclass(frozen=True)
class CurveMetric(Metric):
    """An area under a curve, in [0, 1].

    Predictions are scores [N] with references 0 and 1, [N]; or logits or probabilities [N, C] with class indices [N],
    one class against the rest (with two classes, the second is the positive one); or scores [N, L] with references 0
    and 1, [N, L], for several labels. A reference of -100 does not count.

    Args:
        average: over classes or labels: "macro", or "weighted" by the support of each; "micro", one curve of the
            scores of all of them; "samples", over the examples, a curve of the scores of each. Of two classes there is
            one curve, whatever the average.
    """

    _without_any: ClassVar[float] = math.nan  # the score of a group in which no area is defined
    average: str = "macro"

    def __post_init__(self) -> None:
        averages = ("macro", "weighted", "micro", "samples")
        if self.average not in averages:
            raise ValueError(f"{self.name}: average is one of {', '.join(averages)}, but got {self.average!r}.")

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if predictions.dim() == references.dim() + 1 and predictions.shape[-1] == 1:
            predictions = predictions.squeeze(-1)
        if predictions.isnan().any():
            raise ValueError(
                f"{self.name} cannot rank scores that are nan, of which there are {predictions.isnan().sum()}."
            )
        if references.shape != predictions.shape[: references.dim()] or predictions.dim() > 2:
            raise ValueError(
                f"{self.name} wants scores [N] or [N, L] with references of that shape, or logits [N, C] with class "
                f"indices [N], but got {list(predictions.shape)} with {list(references.shape)}."
            )
        classes = predictions.shape[1] if predictions.dim() > references.dim() else 2
        wrong = (references != IGNORED_LABEL) & ((references < 0) | (references >= classes))
        if wrong.any():
            raise ValueError(f"{self.name} wants references 0 to {classes - 1}, but got {references[wrong][0]}.")
        return predictions, references

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        index = index.to(references.device)
        counts = references != IGNORED_LABEL
        if predictions.dim() > references.dim():
            predictions, positive = _against_rest(predictions, references)
            counts = counts.view(-1, *[1] * (positive.dim() - 1)).expand_as(positive)
        else:
            positive = references > 0
        columns = [x[:, None] if x.dim() == 1 else x for x in (predictions, positive & counts, counts)]
        scores, positive, counts = (column[index].transpose(-1, -2) for column in columns)  # [m, C, N]
        if scores.shape[1] > 1 and self.average == "micro":
            scores, positive, counts = (values.flatten(1)[:, None] for values in (scores, positive, counts))
        elif scores.shape[1] > 1 and self.average == "samples":
            scores, positive, counts = (values.transpose(-1, -2) for values in (scores, positive, counts))
        return self._mean(scores, positive, counts)

    def _mean(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Scores [m] of groups, from scores [m, C, N] of C curves."""
        # Ranks are finite, so that what does not count can be put beyond them.
        areas = self._areas(hard_rank(scores.double()), positive, counts)
        weights = positive.sum(-1).double() if self.average == "weighted" else torch.ones_like(areas)
        weights = weights.masked_fill(areas.isnan(), 0.0)
        means = (areas.nan_to_num() * weights).sum(-1) / weights.sum(-1)
        return torch.where((weights.sum(-1) == 0) & counts.any(-1).any(-1), self._without_any, means)

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        scores, references = self.read(predictions, references)
        several = {}
        if scores.dim() > references.dim():
            classes = scores.shape[-1]
            scores, _ = _against_rest(scores, references)
            several = {"multi_class": getattr(self, "multi_class", "ovr")} if classes > 2 else {}
        return {"prediction_scores": scores, "references": references} | several

    @abc.abstractmethod
    def _areas(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Areas [...] of scores [..., N], nan where they are not defined; `positive` only where `counts`."""


@dataclass(frozen=True)
class RocAuc(CurveMetric):
    """Area under the receiver operating characteristic, as `sklearn.metrics.roc_auc_score`.

    A class without positives or without negatives in the group is left out, where scikit-learn has nan or an error; nan
    where that is all of them. Predictions and `average` as of `CurveMetric`.

    Args:
        max_fpr: only the part of the curve up to this rate of false positives, 0 to 1, standardised so that guessing
            scores 0.5 and perfection 1 (McClish 1989).
        multi_class: of more than two classes, "ovr", one against the rest, or "ovo", one against another, the mean over
            pairs of classes that occur (Hand and Till 2001).
    """

    name: ClassVar[str] = "roc_auc"
    max_fpr: float | None = field(default=None, metadata=LATER)
    multi_class: str = field(default="ovr", metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_fpr is not None and not 0 < self.max_fpr <= 1:
            raise ValueError(f"{self.name}: max_fpr is above 0 and at most 1, but got {self.max_fpr}.")
        if self.multi_class not in ("ovr", "ovo"):
            raise ValueError(f"{self.name}: multi_class is 'ovr' or 'ovo', but got {self.multi_class!r}.")
        if self.multi_class == "ovo" and self.average not in ("macro", "weighted"):
            raise ValueError(f"{self.name}: with 'ovo', average is 'macro' or 'weighted', but got {self.average!r}.")

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        several = predictions.dim() > references.dim() and predictions.shape[-1] > 2
        if self.multi_class == "ovr" or not several:
            return super().score_groups(predictions, references, index)
        scores, _ = _against_rest(predictions, references)
        index = index.to(references.device)
        scores, labels = scores.double()[index], references[index]
        total, weight = torch.zeros(2, len(index), dtype=torch.float64, device=references.device)
        for one, other in itertools.combinations(references[references >= 0].unique().tolist(), 2):
            counts = (labels == one) | (labels == other)
            area, back = (self._areas(hard_rank(scores[..., k]), labels == k, counts) for k in (one, other))
            area = (area + back) / 2
            share = counts.sum(-1).double() if self.average == "weighted" else torch.ones_like(area)
            share = share.masked_fill(area.isnan(), 0.0)
            total, weight = total + area.nan_to_num() * share, weight + share
        return total / weight

    def _areas(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if self.max_fpr is not None and self.max_fpr < 1:
            return self._partial_areas(scores, positive, counts, self.max_fpr)
        # The sum of the positives' ranks (Mann and Whitney), with what does not count above all others.
        ranks = hard_rank(scores.masked_fill(~counts, torch.inf)) + 1
        positives = positive.sum(-1).double()
        negatives = counts.sum(-1) - positives
        return ((ranks * positive).sum(-1) - positives * (positives + 1) / 2) / (positives * negatives)

    def _partial_areas(
        self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor, most: float
    ) -> torch.Tensor:
        steps = _steps(scores, positive, counts)
        positives, negatives = (number[..., -1:] for number in (steps.found, steps.false))
        true, before = steps.found / positives, steps.found_before / positives
        end, start = steps.false / negatives, steps.false_before / negatives
        width = (end.clamp(max=most) - start).clamp(min=0)
        slope = (true - before) / (end - start).masked_fill(end == start, 1.0)
        area = (width * (before + slope * width / 2) / steps.size).sum(-1)
        lowest = most**2 / 2
        return 0.5 * (1 + (area - lowest) / (most - lowest))


@dataclass(frozen=True)
class AveragePrecision(CurveMetric):
    """Mean precision over the positives, as `sklearn.metrics.average_precision_score`.

    A class without positives in the group is left out; 0 where that is all of them. Predictions and options as of
    `CurveMetric`.
    """

    name: ClassVar[str] = "average_precision"
    _without_any: ClassVar[float] = 0.0

    def _areas(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        descending, order = scores.masked_fill(~counts, -torch.inf).neg().sort(-1)
        reached = torch.searchsorted(descending, descending, right=True)  # how many score as much or more
        found = positive.gather(-1, order).double()
        precision = found.cumsum(-1).gather(-1, reached - 1) / reached
        return (precision * found).sum(-1) / positive.sum(-1)


@dataclass(frozen=True)
class PrecisionAtRecall(CurveMetric):
    """The highest precision at any threshold where recall is `min_recall` or more.

    Equal to the maximum over such points of `sklearn.metrics.precision_recall_curve`. A class without positives in the
    group is left out; nan where that is all of them. Predictions and `average` as of `CurveMetric`.

    Args:
        min_recall: above 0 and at most 1.
    """

    name: ClassVar[str] = "precision_at_recall"
    min_recall: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_recall <= 1:
            raise ValueError(f"{self.name}: min_recall is above 0 and at most 1, but got {self.min_recall}.")

    def _areas(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        steps = _steps(scores, positive, counts)
        enough = steps.found / steps.found[..., -1:] >= self.min_recall
        precision = steps.found / (steps.found + steps.false).clamp(min=1)
        best = precision.masked_fill(~enough, 0.0).amax(-1)
        return best.masked_fill(~positive.any(-1), torch.nan)


@dataclass(frozen=True)
class _Steps:
    """How many positives and negatives [..., N] score as much as each prediction or more, and how many score more.

    In descending order of the scores; `size` is how many score the same. All float64.
    """

    found: torch.Tensor
    false: torch.Tensor
    found_before: torch.Tensor
    false_before: torch.Tensor
    size: torch.Tensor


def _steps(scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> _Steps:
    """The steps of a curve of scores [..., N], which come last where they do not count."""
    descending, order = scores.masked_fill(~counts, -torch.inf).neg().sort(-1)
    above, reached = (torch.searchsorted(descending, descending, right=right) for right in (False, True))
    values = []
    for kind in (positive, counts & ~positive):
        summed = F.pad(kind.gather(-1, order).double().cumsum(-1), (1, 0))
        values.append((summed.gather(-1, reached), summed.gather(-1, above)))
    (found, found_before), (false, false_before) = values
    return _Steps(found, false, found_before, false_before, (reached - above).double())


def _against_rest(predictions: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and positives, [N, C] or, of two classes, [N], from logits or probabilities [N, C] and classes [N]."""
    scores = predictions if are_probabilities(predictions) else predictions.double().softmax(-1)
    if scores.shape[-1] == 2:
        # The difference does not saturate.
        return predictions[:, 1] - predictions[:, 0], references == 1
    return scores, references[:, None] == torch.arange(scores.shape[-1], device=references.device)
