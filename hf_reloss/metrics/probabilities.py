"""Metrics of probabilities: how likely a model took what came true, and whether it is right as often as it is sure."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .base import IGNORED_LABEL, AdditiveMetric, numbers

MOST_LOGITS = 2**24
"""How many are made float64 at a time."""


@dataclass(frozen=True)
class ProbabilityMetric(AdditiveMetric):
    """A metric of the probabilities of classes.

    Predictions are logits or probabilities [N, ..., C] (probabilities where all are 0 or more and those of each
    position add up to 1) with class indices [N, ...], all positions of which count alike; or the probability of the one
    of two classes [N] or [N, 1], with class indices [N]. A reference of -100 does not count.
    """

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = numbers(predictions, self.name), numbers(references, self.name)
        if predictions.dim() == 2 and predictions.shape[-1] == 1 and references.dim() == 1:
            predictions = predictions.squeeze(-1)
        if not references.is_floating_point() and not predictions.is_floating_point() and predictions.dim() < 2:
            raise ValueError(f"{self.name} wants logits or probabilities, floats, but got {predictions.dtype}.")
        predictions, references = super().read(predictions, references)
        if references.is_floating_point() and (references != references.round()).any():
            raise ValueError(f"{self.name} wants class indices as references, integers, but got {references.dtype}.")
        references = references.long()
        counts = references != IGNORED_LABEL
        if predictions.shape == references.shape and references.dim() == 1:
            beyond = counts & ~((predictions >= 0) & (predictions <= 1))
            if beyond.any():
                raise ValueError(
                    f"{self.name} of one number for each example wants probabilities, 0 to 1, but got "
                    f"{float(predictions[beyond][0]):.4g}: take the sigmoid of a logit first."
                )
            return predictions.masked_fill(~counts, 0.0), references
        if predictions.dim() != references.dim() + 1 or predictions.shape[:-1] != references.shape:
            raise ValueError(
                f"{self.name} wants logits or probabilities [N, ..., C] with class indices [N, ...], or probabilities "
                f"[N], but got predictions {list(predictions.shape)} and references {list(references.shape)}."
            )
        wrong = counts & ((references < 0) | (references >= predictions.shape[-1]))
        if wrong.any():
            found = int(references[wrong][0])
            raise ValueError(f"{self.name}: a reference is {found}, of {predictions.shape[-1]} classes.")
        return predictions, references

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        counts = (references != IGNORED_LABEL).view(len(references), -1)
        if predictions.shape == references.shape:
            return self._of_one(predictions.double()[:, None], references[:, None], counts)
        rows, likely = max(1, MOST_LOGITS // max(1, predictions[:1].numel())), are_probabilities(predictions)
        parts = zip(predictions.split(rows), references.split(rows), counts.split(rows), strict=True)
        return torch.cat([
            self._of_classes(
                self._likelihood(logits.double(), likely).view(*counted.shape, -1),
                labels.clamp(min=0).view(counted.shape),
                counted,
            )
            for logits, labels, counted in parts
        ])  # fmt: skip

    def _likelihood(self, outputs: torch.Tensor, are_likely: bool) -> torch.Tensor:
        """What is made of outputs, which are logits or `are_likely`: here probabilities."""
        return outputs if are_likely else outputs.softmax(-1)

    @abc.abstractmethod
    def _of_classes(self, likely: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Statistics [N, K] of likelihoods [N, T, C] and labels [N, T], 0 where they do not count."""

    def _of_one(self, positive: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Statistics [N, K] of the probability of one class [N, 1]: those of two classes."""
        both = self._likelihood(torch.stack([1 - positive, positive], dim=-1), True)
        return self._of_classes(both, self._is_positive(labels).long(), counts)

    def _is_positive(self, labels: torch.Tensor) -> torch.Tensor:
        """Which labels are of the class that probabilities [N] are of."""
        return labels == 1

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class BrierScore(ProbabilityMetric):
    """The Brier score (Brier 1950), the mean squared error of probabilities: lower is better; nan where nothing counts.

    Equal to `sklearn.metrics.brier_score_loss`. Predictions as of `ProbabilityMetric`; statistics: [N, 2], squared
    errors and how many count.

    Args:
        pos_label: where predictions are the probability of one class, [N], that class.
        scale_by_half: whether the sum over classes, in [0, 2], is halved; "auto" is to do so for two classes.
    """

    name: ClassVar[str] = "brier_score"
    higher_is_better: ClassVar[bool] = False
    pos_label: int = 1
    scale_by_half: bool | str = "auto"

    def __post_init__(self) -> None:
        if self.scale_by_half not in (True, False, "auto"):
            raise ValueError(f"{self.name}: scale_by_half is True, False or 'auto', but got {self.scale_by_half!r}.")

    def _is_positive(self, labels: torch.Tensor) -> torch.Tensor:
        return labels == self.pos_label

    def _of_classes(self, likely: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        classes = likely.shape[-1]
        errors = (likely - F.one_hot(labels, classes)).square().sum(-1)
        if self.scale_by_half is True or (self.scale_by_half == "auto" and classes == 2):
            errors = errors / 2
        return torch.stack([errors.masked_fill(~counts, 0.0).sum(-1), counts.sum(-1).double()], dim=-1)


@dataclass(frozen=True)
class Brier(BrierScore):
    """`brier_score` by its short name."""

    name: ClassVar[str] = "brier"
    evaluate_module: ClassVar[str] = "brier"


@dataclass(frozen=True)
class CalibrationError(ProbabilityMetric):
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): lower is better; nan where nothing counts.

    Predictions are put into bins of equal width by their confidence; a bin's error is the difference of its mean
    confidence and the share in it that is right. The confidence is the highest probability, and what is right is the
    class it is of (the first of equal ones); where predictions are the probability of one class, [N], it is that
    probability, and what is right is that class. A bin has its lower end, the last one both ends.

    Statistics: [N, 3 n_bins], predictions, confidence and right ones of each bin. Predictions as of
    `ProbabilityMetric`.

    Args:
        n_bins: how many.
        norm: "l1", the mean of the bins' errors, each weighed by its number of predictions; "l2", the root of that of
            their squares; "max", the largest.
    """

    name: ClassVar[str] = "ece"
    higher_is_better: ClassVar[bool] = False
    evaluate_module: ClassVar[str] = "calibration_error"  # one that is called ece has other bins by default
    n_bins: int = 15
    norm: str = "l1"

    def __post_init__(self) -> None:
        if self.n_bins < 1:
            raise ValueError(f"{self.name}: n_bins is how many bins there are, 1 or more, but got {self.n_bins}.")
        if self.norm not in ("l1", "l2", "max"):
            raise ValueError(f"{self.name}: norm is 'l1', 'l2' or 'max', but got {self.norm!r}.")

    def _of_one(self, positive: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        return self._bins(positive, self._is_positive(labels), counts)

    def _of_classes(self, likely: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        confidence, decided = likely.max(-1)
        return self._bins(confidence, decided == labels, counts)

    def _bins(self, confidence: torch.Tensor, right: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Statistics of confidence [N, T]."""
        ends = torch.linspace(0, 1, self.n_bins + 1, dtype=torch.float64, device=confidence.device)
        place = torch.bucketize(confidence, ends[1:-1], right=True)
        kinds = torch.stack([counts.double(), confidence * counts, (right & counts).double()], dim=1)  # [N, 3, T]
        bins = kinds.new_zeros(len(confidence), 3, self.n_bins)
        return bins.scatter_add(2, place[:, None].expand_as(kinds), kinds).flatten(1)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        number, confidence, right = sums.unflatten(-1, (3, self.n_bins)).unbind(-2)
        errors = (right - confidence).abs() / number.clamp(min=1)
        share = number / number.sum(-1, keepdim=True)
        if self.norm == "max":
            return torch.where(number.sum(-1) > 0, errors.amax(-1), torch.nan)
        return (share * errors).sum(-1) if self.norm == "l1" else (share * errors.square()).sum(-1).sqrt()


@dataclass(frozen=True)
class ExpectedCalibrationError(CalibrationError):
    """`ece` by its long name."""

    name: ClassVar[str] = "expected_calibration_error"
    evaluate_module: ClassVar[str] = "calibration_error"


@dataclass(frozen=True)
class Perplexity(ProbabilityMetric):
    """Perplexity, the exponential of the mean negative log-likelihood of the labels: lower is better, at best 1.

    Predictions are logits or probabilities [N, T, C] with the class of each position [N, T], which are not shifted: a
    causal language model's logits [:, :-1] go with its labels [:, 1:]. As of `ProbabilityMetric` otherwise; nan where
    nothing counts.

    Args:
        average: "tokens", all positions alike, the exponential of an evaluation's loss; "sequences", the mean
            over examples of the perplexity of each, as the `mean_perplexity` of evaluate's module is.
    """

    name: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    evaluate_key: ClassVar[str] = "mean_perplexity"
    average: str = "tokens"

    def __post_init__(self) -> None:
        if self.average not in ("tokens", "sequences"):
            raise ValueError(f"{self.name}: average is 'tokens' or 'sequences', but got {self.average!r}.")

    def _likelihood(self, outputs: torch.Tensor, are_likely: bool) -> torch.Tensor:
        return outputs.log() if are_likely else outputs.log_softmax(-1)

    def _of_classes(self, likely: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        total = -likely.gather(-1, labels[..., None])[..., 0].masked_fill(~counts, 0.0).sum(-1)
        number = counts.sum(-1).double()
        if self.average == "tokens":
            return torch.stack([total, number], dim=-1)
        return torch.stack([(total / number.clamp(min=1)).exp() * (number > 0), (number > 0).double()], dim=-1)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        mean = super()._score(sums)
        return mean.exp() if self.average == "tokens" else mean


def are_probabilities(values: torch.Tensor) -> bool:
    """Whether values [..., C] are probabilities: 0 or more, and adding up to 1, also in bfloat16."""
    return bool((values >= 0).all() and ((values.sum(-1) - 1).abs() < 1e-2).all())
