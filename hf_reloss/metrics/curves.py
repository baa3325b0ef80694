"""Areas under curves over all thresholds. They are not sums over predictions: each group is sorted, all at once."""

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..ranking import hard_rank
from .base import IGNORED_LABEL, Metric
from .probabilities import are_probabilities


@dataclass(frozen=True)
class CurveMetric(Metric):
    """An area under a curve, in [0, 1].

    Predictions are scores [N] with references 0 and 1, [N]; or logits or probabilities [N, C] with class indices [N],
    one class against the rest (with two classes, the second is the positive one); or scores [N, L] with references 0
    and 1, [N, L], for several labels. A reference of -100 does not count.

    Args:
        average: over classes or labels: "macro", or "weighted" by how often each is due.
    """

    _without_any: ClassVar[float] = math.nan  # the score of a group in which no area is defined
    average: str = "macro"

    def __post_init__(self) -> None:
        if self.average not in ("macro", "weighted"):
            raise ValueError(f"{self.name}: average is 'macro' or 'weighted', but got {self.average!r}.")

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
        # Ranks are finite, so that what does not count can be put beyond them.
        areas = self._areas(hard_rank(scores.double()), positive, counts)
        weights = positive.sum(-1).double() if self.average == "weighted" else torch.ones_like(areas)
        weights = weights.masked_fill(areas.isnan(), 0.0)
        scores = (areas.nan_to_num() * weights).sum(-1) / weights.sum(-1)
        return torch.where((weights.sum(-1) == 0) & counts.any(-1).any(-1), self._without_any, scores)

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        scores, references = self.read(predictions, references)
        several = {}
        if scores.dim() > references.dim():
            classes = scores.shape[-1]
            scores, _ = _against_rest(scores, references)
            several = {"multi_class": "ovr"} if classes > 2 else {}
        return {"prediction_scores": scores, "references": references} | several

    @abc.abstractmethod
    def _areas(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Areas [...] of scores [..., N], nan where they are not defined; `positive` only where `counts`."""


@dataclass(frozen=True)
class RocAuc(CurveMetric):
    """Area under the receiver operating characteristic, as `sklearn.metrics.roc_auc_score`.

    A class without positives or without negatives in the group is left out, where scikit-learn has nan or an error; nan
    where that is all of them. Predictions and options as of `CurveMetric`.
    """

    name: ClassVar[str] = "roc_auc"

    def _areas(self, scores: torch.Tensor, positive: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        # The sum of the positives' ranks (Mann and Whitney), with what does not count above all others.
        ranks = hard_rank(scores.masked_fill(~counts, torch.inf)) + 1
        positives = positive.sum(-1).double()
        negatives = counts.sum(-1) - positives
        return ((ranks * positive).sum(-1) - positives * (positives + 1) / 2) / (positives * negatives)


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


def _against_rest(predictions: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and positives, [N, C] or, of two classes, [N], from logits or probabilities [N, C] and classes [N]."""
    scores = predictions if are_probabilities(predictions) else predictions.double().softmax(-1)
    if scores.shape[-1] == 2:
        # The difference does not saturate.
        return predictions[:, 1] - predictions[:, 0], references == 1
    return scores, references[:, None] == torch.arange(scores.shape[-1], device=references.device)
