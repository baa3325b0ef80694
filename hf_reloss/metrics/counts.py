"""Metrics that are functions of counts per class: precision, recall, F1, Matthews correlation."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .base import IGNORED_LABEL, numbers
from .classification import ClassMetric, over_threshold


@dataclass(frozen=True)
class CountMetric(ClassMetric):
    """A metric of three counts per class: how often it was right, predicted, and the label.

    Statistics: [N, 3 C], the right ones of all classes, then the predicted, then the labels; C is the number of logits
    or, of class indices, one more than the largest. The score is differentiable, and defined for soft counts as well;
    nan where nothing counts.

    Attributes:
        zero_point: the score that is as bad as any below, where its soft form ends; the best is 1.
    """

    @property
    def zero_point(self) -> float:
        return 0.0

    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        logits = numbers(predictions, self.name)
        predictions, references = self.read(logits, references)
        return self._statistics(predictions, references, logits.shape[-1] if logits.dim() > predictions.dim() else 0)

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor, classes: int = 0) -> torch.Tensor:
        return _count(*_kinds(predictions, references, classes, self.name))

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        if references.dim() > 1:
            return super().score_groups(predictions, references, index)
        # Predictions are told apart before they are drawn, and a group is counted at once.
        kinds, classes = _kinds(predictions, references, 0, self.name)
        chosen = index.to(kinds.device).flatten()
        drawn = torch.stack([kind[:, 0].index_select(0, chosen) for kind in kinds])
        return self.score(_count(drawn.view(3, *index.shape), classes))

    def added(self, sums: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        if sums.shape == more.shape:
            return sums + more
        kinds = [each.unflatten(-1, (3, -1)) for each in (sums, more)]
        classes = max(each.shape[-1] for each in kinds)
        return sum(F.pad(each, (0, classes - each.shape[-1])) for each in kinds).flatten()  # type: ignore[union-attr]

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        parts, weights = self.parts(sums)
        return (parts * weights).sum(-1) / weights.sum(-1)

    def parts(self, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The score as a mean.

        Args:
            sums: [..., 3 C], counts added up over a group.

        Returns:
            What the score is the weighted mean of (for a macro average the classes, for others the score alone)
            [..., P], and the weights [..., P], all 0 where nothing counts.
        """
        return self._parts(*sums.unflatten(-1, (3, -1)).unbind(-2))

    @abc.abstractmethod
    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`parts` of counts [..., C] each."""


SEVERAL_LABELS: dict[str, Any] = {"threshold": 0.5}
"""The options of metrics by which they take several labels for each example, [N, L], 0 or 1."""


@dataclass(frozen=True)
class RatioMetric(CountMetric):
    """A ratio of counts of each class, averaged over classes; in [0, 1].

    With a threshold it is multi-label: predictions are logits or probabilities [N, L], or 0 and 1, and references 0 and
    1, [N, L].

    Args:
        labels: the classes that are averaged; by default all that are predicted or a label in the group.
        pos_label: of average "binary": the class that is scored.
        average: "binary" (that class alone, of two), "micro" (counts added up over the classes), "macro" (mean over the
            classes), "weighted" (mean weighted by its number of labels), "samples" (multi-label only: the mean over
            examples of the ratio of each; statistics: [N, 2], that and 1).
        zero_division: the value where a class has a denominator of 0; nan leaves it out, "warn" is 0.
        threshold: multi-label: a label is predicted where its probability is above; see `over_threshold`.
    """

    labels: Sequence[int] | None = None
    pos_label: int = 1
    average: str = "binary"
    zero_division: float | str = 0.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        averages = ("binary", "micro", "macro", "weighted", "samples")
        if self.average not in averages:
            raise ValueError(f"{self.name}: average is one of {', '.join(averages)}, but got {self.average!r}.")
        if self.labels is not None:  # an array or a tensor, too
            object.__setattr__(self, "labels", [int(label) for label in self.labels])
        below = [label for label in (self.pos_label, *(self.labels or ())) if label < 0]
        if below:
            raise ValueError(
                f"{self.name}: pos_label and labels are class indices, 0 or more, but got {below[0]}: map classes such "
                "as -1 and 1 to 0 and 1."
            )

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.threshold is None:
            return super().decide(outputs)
        return over_threshold(outputs, self.threshold) if outputs.is_floating_point() else outputs

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if self.threshold is not None and references.dim() < 2:
            raise ValueError(f"{self.name} with a threshold wants references [N, L], but got {list(references.shape)}.")
        if self.threshold is None and self.average == "samples":
            raise ValueError(
                f"{self.name}: average='samples' is of several labels per example: pass threshold=0.5, with references "
                f"[N, L] of 0 and 1, or choose another average; these references are {list(references.shape)}."
            )
        return predictions, references

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor, classes: int = 0) -> torch.Tensor:
        if self.threshold is None:
            return super()._statistics(predictions, references, classes)
        counts = references != IGNORED_LABEL
        predicted, support = (predictions > 0) & counts, (references > 0) & counts
        kinds = torch.stack([predicted & support, predicted, support], dim=-2)
        kinds = kinds.view(len(kinds), -1, *kinds.shape[-2:]).sum(1).flatten(1).double()
        if self.average == "samples":
            parts, weights = self.parts(kinds)
            weights = weights * counts.flatten(1).any(1, keepdim=True)
            return torch.cat([parts * weights, weights], dim=-1)
        return kinds

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1] if self.average == "samples" else super()._score(sums)

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.average == "binary" and right.shape[-1] > 2:
            raise ValueError(
                f"{self.name}: average='binary' scores one of two classes, but there are {right.shape[-1]}: choose "
                f"average='macro', 'micro' or 'weighted', as in metric=load_metric({self.name!r}, average='macro')."
            )
        chosen = [self.pos_label] if self.average == "binary" else self.labels
        # Of several labels, there is a score also where an example has none.
        any_counts = (support.sum(-1, keepdim=True) > 0) | (self.threshold is not None)
        weights = ((predicted + support > 0) | (self.threshold is not None)).to(support)
        if chosen:
            lacking = max(0, max(chosen) + 1 - right.shape[-1])  # classes beyond those that were seen
            right, predicted, support = (
                F.pad(counts, (0, lacking))[..., list(chosen)] for counts in (right, predicted, support)
            )
            weights = torch.ones_like(support)
        if self.average in ("micro", "samples"):
            right, predicted, support = (counts.sum(-1, keepdim=True) for counts in (right, predicted, support))
            weights = torch.ones_like(support)
        ratio = self._ratio(right, predicted, support)
        weights = weights * ~ratio.isnan()  # where zero_division is nan
        if self.average == "weighted":
            weighted = support * weights.bool()
            # Where no class has a label at all, they weigh the same.
            weights = torch.where(weighted.sum(-1, keepdim=True) > 0, weighted, weights)
        return ratio.nan_to_num(), weights * any_counts

    @abc.abstractmethod
    def _ratio(self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """The ratio [...] of counts [...]."""

    def _divide(self, numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
        empty = denominator == 0
        value = 0.0 if self.zero_division == "warn" else float(self.zero_division)
        return torch.where(empty, value, numerator / denominator.masked_fill(empty, 1.0))


@dataclass(frozen=True)
class Precision(RatioMetric):
    """Right / predicted, as `sklearn.metrics.precision_score`. Options as of `RatioMetric`."""

    name: ClassVar[str] = "precision"

    def _ratio(self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        return self._divide(right, predicted)


@dataclass(frozen=True)
class Recall(RatioMetric):
    """Right / support, as `sklearn.metrics.recall_score`. Options as of `RatioMetric`."""

    name: ClassVar[str] = "recall"

    def _ratio(self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        return self._divide(right, support)


@dataclass(frozen=True)
class F1(RatioMetric):
    """2 right / (predicted + support), as `sklearn.metrics.f1_score`. Options as of `RatioMetric`."""

    name: ClassVar[str] = "f1"

    def _ratio(self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        return self._divide(2 * right, predicted + support)


@dataclass(frozen=True)
class FBeta(RatioMetric):
    """(1 + β²) right / (predicted + β² support), as `sklearn.metrics.fbeta_score`. Options as of `RatioMetric`.

    Args:
        beta: β, how many times as much recall weighs as precision.
    """

    name: ClassVar[str] = "fbeta"
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"{self.name}: beta is a weight, 0 or more, but got {self.beta}.")

    def _ratio(self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        square = self.beta**2
        return self._divide((1 + square) * right, predicted + square * support)


@dataclass(frozen=True)
class BalancedAccuracy(CountMetric):
    """Mean recall of the classes that have labels, as `sklearn.metrics.balanced_accuracy_score`; in [0, 1].

    Args:
        adjusted: scaled so that guessing scores 0 and perfection 1.
    """

    name: ClassVar[str] = "balanced_accuracy"
    adjusted: bool = False

    @property
    def zero_point(self) -> float:
        return -0.1 if self.adjusted else 0.0  # just below that of guessing

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        present = (support > 0).to(support)
        recall = right / support.masked_fill(support == 0, 1.0)
        if self.adjusted:
            guess = 1 / present.sum(-1, keepdim=True)
            # With one class only, scikit-learn divides by 0. No gradient should come of that.
            alone = ((recall - guess) / (1 - guess)).detach()
            adjusted = torch.where(guess == 1, alone, (recall - guess) / (1 - guess).masked_fill(guess == 1, 1.0))
            recall = torch.where(present > 0, adjusted, 0.0)
        return recall, present


@dataclass(frozen=True)
class MatthewsCorrelation(CountMetric):
    """Matthews correlation of two classes or more, as `sklearn.metrics.matthews_corrcoef`; in [-1, 1].

    0 where only one class is predicted, or has labels.
    """

    name: ClassVar[str] = "matthews_correlation"

    @property
    def zero_point(self) -> float:
        return -0.1  # just below that of guessing, which is 0

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = support.sum(-1, keepdim=True)
        covariance = right.sum(-1, keepdim=True) * total - (predicted * support).sum(-1, keepdim=True)
        variances = (total**2 - (predicted**2).sum(-1, keepdim=True)) * (total**2 - (support**2).sum(-1, keepdim=True))
        constant = variances <= 0
        correlation = torch.where(constant, 0.0, covariance / variances.masked_fill(constant, 1.0).sqrt())
        return correlation, (total > 0).to(support)


def marked(
    predictions: torch.Tensor, references: torch.Tensor, classes: int, name: str
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Class indices [n, positions], -1 where nothing counts, and the number of classes, `classes` or more."""
    counts = references != IGNORED_LABEL
    if ((predictions < 0) & counts).any() or ((references < 0) & counts).any():
        raise ValueError(f"{name}: class indices are 0 or more, or {IGNORED_LABEL} in references that do not count.")
    predicted, support = (
        x.long().masked_fill(~counts, -1).view(len(x), max(1, x[:1].numel())) for x in (predictions, references)
    )
    return predicted, support, max(classes, 1, *(int(x.max()) + 1 for x in (predicted, support) if x.numel()))


def _kinds(predictions: torch.Tensor, references: torch.Tensor, classes: int, name: str) -> tuple[torch.Tensor, int]:
    """Classes that were right, predicted, labels: int32 [3, n, positions], -1 for none; and the number of classes."""
    predictions, references, classes = marked(predictions, references, classes, name)
    return torch.stack([references.masked_fill(predictions != references, -1), predictions, references]).int(), classes


def _count(kinds: torch.Tensor, classes: int) -> torch.Tensor:
    """Counts [n, 3 classes] of kinds [3, n, positions]."""
    rows = torch.arange(3 * kinds.shape[1], device=kinds.device).view(-1, 3, 1).transpose(0, 1)
    return histograms(kinds, rows, classes).view(-1, 3 * classes)


def histograms(indices: torch.Tensor, rows: torch.Tensor, slots: int) -> torch.Tensor:
    """How often each of 0 .. slots - 1 occurs in each row.

    Args:
        indices: [..., positions]; -1 is left out.
        rows: [..., 1], the row that a position belongs to, each of 0 .. rows - 1.
        slots: their number.

    Returns:
        [rows, slots] float64.
    """
    total = rows.numel() * (slots + 1)
    # bincount goes through its input three times: that is faster where the numbers are short.
    dtype = torch.int32 if total < 2**31 else torch.int64
    offset = (rows * (slots + 1) + 1).to(dtype)
    counts = torch.bincount((indices.to(dtype) + offset).flatten(), minlength=total)
    return counts.view(-1, slots + 1)[:, 1:].double()
