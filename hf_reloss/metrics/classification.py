"""Metrics of class decisions, on whatever device the predictions are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import IGNORED_LABEL, AdditiveMetric, Metric, numbers


@dataclass(frozen=True)
class ClassMetric(AdditiveMetric):
    """A metric of class decisions.

    Predictions are logits [N, ..., C] (floating point; a tie goes to the first class, as in `argmax`) or class indices
    [N, ...], references class indices [N, ...]. Where there are more dimensions, as with tokens, all positions count
    alike. A label of -100 does not count.
    """

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        if not outputs.is_floating_point():
            return outputs
        if outputs.dim() < 2 or outputs.shape[-1] < 2:
            raise ValueError(f"{self.name} takes one logit per class, [N, ..., C], but got {list(outputs.shape)}.")
        return outputs.argmax(-1)

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = numbers(predictions, self.name), numbers(references, self.name)
        if references.is_floating_point() and (references != references.round()).any():
            raise ValueError(f"{self.name} wants class indices as references, integers, but got {references.dtype}.")
        of_labels = getattr(self, "threshold", None) is not None  # where logits have the references' shape
        if predictions.shape == references.shape and predictions.is_floating_point() and not of_labels:
            if (predictions != predictions.round()).any():
                raise ValueError(f"{self.name} wants a logit for each class, or class indices, but got neither.")
            predictions = predictions.long()
        predictions, references = super().read(predictions, references.long())
        if self._decided(predictions) != references.shape:
            raise ValueError(
                f"{self.name} wants logits [N, ..., C] or class indices [N, ...] for references [N, ...], but got "
                f"predictions {list(predictions.shape)} for references {list(references.shape)}."
            )
        return predictions, references

    def informed(self, facts: Mapping[str, Any]) -> Metric:
        """As of `Metric`; for a model of one number, `of_grades`, the same of rounded numbers."""
        return GradeMetric(self) if facts.get("of_grades") else super().informed(facts)

    def _decided(self, predictions: torch.Tensor) -> torch.Size:
        """How many decisions there are, of what `decide` gave."""
        return predictions.shape

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        if references.dim() > 1:
            return super().score_groups(predictions, references, index)
        # A group is counted at once, as one prediction of many labels: nothing is laid out per prediction and class.
        index = index.to(references.device)
        return self.score(self._statistics(predictions[index], references[index]))


@dataclass(frozen=True)
class Accuracy(ClassMetric):
    """Share of the decisions that are right, in [0, 1]; nan where nothing counts.

    Statistics: [N, 2], those that are right and those that count. Equal to `sklearn.metrics.accuracy_score`.
    """

    name: ClassVar[str] = "accuracy"

    def informed(self, facts: Mapping[str, Any]) -> Metric:
        """The same metric; of several labels for each example, as a `threshold` says, that of all of them together."""
        if type(self) is Accuracy and "threshold" in facts:
            return SubsetAccuracy(facts["threshold"])
        return super().informed(facts)

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        counts = references != IGNORED_LABEL
        return torch.stack([_total(self._right(predictions, references) & counts), _total(counts)], dim=-1).double()

    def _right(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return predictions == references

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class SubsetAccuracy(Accuracy):
    """Share of the examples of which all labels are right, of several for each; nan where nothing counts.

    Predictions are logits [N, L], or 0 and 1, and references 0 and 1, [N, L]; a reference of -100 does not count.
    Statistics: [N, 2], examples that are right and those that count. Equal to `sklearn.metrics.accuracy_score` of such
    references.

    Args:
        threshold: a label is predicted where its probability is above: see `over_threshold`.
    """

    name: ClassVar[str] = "subset_accuracy"
    evaluate_module: ClassVar[str] = "accuracy"
    evaluate_key: ClassVar[str] = "accuracy"
    threshold: float = 0.5

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        return over_threshold(outputs, self.threshold) if outputs.is_floating_point() else outputs

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if references.dim() < 2:
            raise ValueError(f"{self.name} wants references [N, L], 0 and 1, but got {list(references.shape)}.")
        return predictions, references

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        counts = references != IGNORED_LABEL
        right = ((predictions > 0) == (references > 0)) | ~counts
        return torch.stack([right.all(-1) & counts.any(-1), counts.any(-1)], dim=-1).double()


@dataclass(frozen=True)
class TopKAccuracy(Accuracy):
    """Share of the labels that are among the k highest logits, in [0, 1]; nan where nothing counts.

    Predictions are logits [N, ..., C]. Of equal logits the later class comes first, as in
    `sklearn.metrics.top_k_accuracy_score`, to which it is equal for three classes or more. Statistics as of accuracy.
    """

    name: ClassVar[str] = "top_k_accuracy"
    k: int = 5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"{self.name}: k is the number of guesses, 1 or more, but got {self.k}.")

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        if not outputs.is_floating_point():
            raise ValueError(f"{self.name} wants logits [N, ..., C], but got {outputs.dtype}.")
        return outputs

    def _decided(self, predictions: torch.Tensor) -> torch.Size:
        return predictions.shape[:-1]

    def _right(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        label = references.masked_fill(references == IGNORED_LABEL, 0)[..., None]
        wrong = (label < 0) | (label >= predictions.shape[-1])
        if wrong.any():
            raise ValueError(f"{self.name}: a reference is {label[wrong][0]}, of {predictions.shape[-1]} classes.")
        logit = predictions.gather(-1, label)
        later = torch.arange(predictions.shape[-1], device=label.device) > label
        ahead = (predictions > logit) | ((predictions == logit) & later)
        return (ahead.sum(-1) < self.k) & ~logit.isnan()[..., 0]


def _total(counts: torch.Tensor) -> torch.Tensor:
    """Sums [n] of [n, ...]."""
    return counts.sum(tuple(range(1, counts.dim()))) if counts.dim() > 1 else counts


def over_threshold(outputs: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which labels are predicted, bool [n, ...]: those with a probability above a threshold.

    Args:
        outputs: [n, ...] floating point: probabilities if all of them are in [0, 1], else logits, as torchmetrics has
            it. Logits of a few labels may all be in there by chance, so convert those by `sigmoid`.
        threshold: of probabilities.
    """
    is_probability = bool(((outputs >= 0) & (outputs <= 1)).all())
    return (outputs if is_probability else outputs.sigmoid()) > threshold


def one_number_each(values: torch.Tensor) -> torch.Tensor:
    """Numbers [n] of [n, 1]; others as they are."""
    return values.squeeze(-1) if values.dim() == 2 and values.shape[-1] == 1 else values


class GradeMetric(Metric):
    """A metric of classes that a model of one number is judged by: it sees grades, rounded numbers.

    Predictions are numbers [N] or [N, 1]; they and the references are rounded (halves to the even grade, as
    `torch.round`), and predictions do not leave the range of the references, which may begin below 0, or of the
    metric's `labels`. What it is
    otherwise, such as its name and direction, is that of the metric.

    Args:
        of: the metric, of classes.
    """

    def __init__(self, of: ClassMetric):
        self.of = of
        self.name, self.higher_is_better = of.name, of.higher_is_better  # type: ignore[misc]

    @property
    def options(self) -> dict[str, Any]:
        return self.of.options

    @property
    def signature(self) -> str:
        return f"{self.of.signature}|of grades"

    def read(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        predictions, references = super().read(predictions, references)
        predictions, references = one_number_each(predictions), one_number_each(references).round().long()
        if predictions.shape != references.shape:
            raise ValueError(
                f"{self.name} of grades wants one number for each example, [N] or [N, 1], but got "
                f"{list(predictions.shape)} for references {list(references.shape)}."
            )
        grades_of = getattr(self.of, "labels", None)
        if grades_of is not None:
            return predictions.round().clamp(min(grades_of), max(grades_of)).long(), references
        found, known = grades(predictions, references), references != IGNORED_LABEL
        below = min(0, int(references[known].min())) if known.any() else 0  # grades may begin at -2, say, classes at 0
        return found - below, torch.where(known, references - below, references)

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        return self.of.score_groups(*self.read(predictions, references), index)


def grades(values: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Grades [n] int64 of numbers [n]: rounded, within the range of references [n] int64."""
    known = references[references != IGNORED_LABEL].round()
    if not known.numel():
        return values.round().long()
    return values.round().clamp(int(known.min()), int(known.max())).long()
