"""Metrics of numbers: errors and correlations, and metrics of classes on numbers that are rounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..ranking import hard_rank
from .base import IGNORED_LABEL, AdditiveMetric, Metric
from .classification import one_number_each

EPSILON = torch.finfo(torch.float64).eps
"""What is divided by at least, as in scikit-learn."""


@dataclass(frozen=True)
class NumberMetric(Metric):
    """A metric of predictions [N] or [N, 1] and references of as many numbers; a reference of -100 does not count."""

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = (one_number_each(values) for values in super().read(predictions, references))
        if predictions.dim() != 1 or predictions.shape != references.shape:
            raise ValueError(
                f"{self.name} wants one number for each example, [N] or [N, 1], but got predictions "
                f"{list(predictions.shape)} and references {list(references.shape)}."
            )
        return predictions.double(), references.double()


@dataclass(frozen=True)
class ErrorMetric(NumberMetric, AdditiveMetric):
    """A mean of errors: lower is better. Statistics: [N, 2], errors and how many count."""

    higher_is_better: ClassVar[bool] = False

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        counts = references != IGNORED_LABEL
        errors = self._errors(predictions, references).masked_fill(~counts, 0.0)
        return torch.stack([errors, counts.double()], dim=-1)

    def _errors(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return (predictions - references).square()

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class MeanSquaredError(ErrorMetric):
    """Mean squared error, as `sklearn.metrics.mean_squared_error`; nan where nothing counts.

    Args:
        squared: False for its root.
    """

    name: ClassVar[str] = "mse"
    squared: bool = True

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        mean = super()._score(sums)
        return mean if self.squared else mean.sqrt()


@dataclass(frozen=True)
class RootMeanSquaredError(ErrorMetric):
    """The root of the mean squared error, as `sklearn.metrics.root_mean_squared_error`; nan where nothing counts."""

    name: ClassVar[str] = "rmse"

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return super()._score(sums).sqrt()


@dataclass(frozen=True)
class MeanAbsoluteError(ErrorMetric):
    """Mean absolute error, as `sklearn.metrics.mean_absolute_error`; nan where nothing counts."""

    name: ClassVar[str] = "mae"

    def _errors(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return (predictions - references).abs()


@dataclass(frozen=True)
class MeanAbsolutePercentageError(ErrorMetric):
    """Mean of |error| / |reference|, as `sklearn.metrics.mean_absolute_percentage_error`; nan where nothing counts.

    1 is an error of 100 %. A reference of 0 is taken for 2.2e-16, so that an error there is beyond all others.
    """

    name: ClassVar[str] = "mape"

    def _errors(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return (predictions - references).abs() / references.abs().clamp(min=EPSILON)


@dataclass(frozen=True)
class SymmetricMeanAbsolutePercentageError(ErrorMetric):
    """Mean of 2 |error| / (|prediction| + |reference|), in [0, 2]; nan where nothing counts.

    As evaluate's `smape` (Chen and Yang 2004); 0 where both are 0.
    """

    name: ClassVar[str] = "smape"

    def _errors(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        sizes = predictions.abs().clamp(min=EPSILON) + references.abs().clamp(min=EPSILON)
        return 2 * (predictions - references).abs() / sizes


@dataclass(frozen=True)
class MeanAbsoluteScaledError(ErrorMetric):
    """Mean absolute error, divided by that of a naive forecast of a series (Hyndman and Koehler 2006).

    As evaluate's `mase`; nan where nothing counts.

    Args:
        training: the series, numbers in their order, more than `periodicity` of them.
        periodicity: the naive forecast is the number that stands this many places before.
    """

    name: ClassVar[str] = "mase"
    training: Sequence[float] = ()
    periodicity: int = 1

    def __post_init__(self) -> None:
        series = tuple(float(number) for number in self.training)  # also of an array
        object.__setattr__(self, "training", series)
        if self.periodicity < 1 or len(series) <= self.periodicity:
            raise ValueError(
                f"{self.name} wants a series of more numbers than its periodicity, to scale errors by: pass training=, "
                f"of which there are {len(series)}, and periodicity= 1 or more, which is {self.periodicity}."
            )

    def _errors(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        series = torch.tensor(self.training, dtype=torch.float64)
        naive = (series[self.periodicity :] - series[: -self.periodicity]).abs().mean().clamp(min=EPSILON)
        return (predictions - references).abs() / float(naive)


@dataclass(frozen=True)
class GroupNumberMetric(NumberMetric):
    """A metric that is taken of whole groups, for sums over predictions would lose the digits of small differences."""

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        index = index.to(references.device)
        predictions, references = predictions[index], references[index]
        return self._of_groups(predictions, references, references != IGNORED_LABEL)

    def _of_groups(self, predictions: torch.Tensor, references: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Scores [m] of groups [m, N]."""
        raise NotImplementedError


@dataclass(frozen=True)
class PearsonCorrelation(GroupNumberMetric):
    """Pearson's correlation, as `scipy.stats.pearsonr`; nan of fewer than two numbers, or of constant ones."""

    name: ClassVar[str] = "pearsonr"

    def _of_groups(self, predictions: torch.Tensor, references: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        one, other = centred(predictions, counts), centred(references, counts)
        size = one.norm(dim=-1) * other.norm(dim=-1)
        constant = _constant(predictions, counts) | _constant(references, counts)
        return ((one * other).sum(-1) / size).clamp(-1, 1).masked_fill(constant, torch.nan)


@dataclass(frozen=True)
class SpearmanCorrelation(PearsonCorrelation):
    """Spearman's correlation by average ranks, as `scipy.stats.spearmanr`; nan as of `PearsonCorrelation`."""

    name: ClassVar[str] = "spearmanr"

    def _of_groups(self, predictions: torch.Tensor, references: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        # What does not count is ranked above all else, and then left out.
        ranks, their_ranks = (hard_rank(values.masked_fill(~counts, torch.inf)) for values in (predictions, references))
        found = super()._of_groups(ranks, their_ranks, counts)
        unknown = ((predictions.isnan() | references.isnan()) & counts).any(-1)
        return found.masked_fill(unknown, torch.nan)


@dataclass(frozen=True)
class RSquared(GroupNumberMetric):
    """The coefficient of determination, as `sklearn.metrics.r2_score`: nan of fewer than two numbers.

    Of constant references it is 1 where all predictions are right, and else 0.
    """

    name: ClassVar[str] = "r_squared"

    def _of_groups(self, predictions: torch.Tensor, references: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        errors = (predictions - references).masked_fill(~counts, 0.0).square().sum(-1)
        spread = centred(references, counts).square().sum(-1)
        constant = _constant(references, counts) | (spread == 0)
        found = torch.where(constant, (errors == 0).double(), 1 - errors / spread)
        return found.masked_fill(counts.sum(-1) < 2, torch.nan)


@dataclass(frozen=True)
class R2(RSquared):
    """`r_squared` by its short name."""

    name: ClassVar[str] = "r2"
    evaluate_module: ClassVar[str] = "r2"
    evaluate_key: ClassVar[str] = "r2"


def centred(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Values [..., N] less the mean of those that count, and 0 where they do not."""
    number = counts.sum(-1, keepdim=True).clamp(min=1)
    values = values.masked_fill(~counts, 0.0)
    values = (values - values.sum(-1, keepdim=True) / number).masked_fill(~counts, 0.0)
    # Once more: of large numbers the first mean is not exact.
    return (values - values.sum(-1, keepdim=True) / number).masked_fill(~counts, 0.0)


def _constant(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Whether all values [..., N] that count are the same, as one or none are."""
    lowest = values.masked_fill(~counts, torch.inf).amin(-1)
    return lowest >= values.masked_fill(~counts, -torch.inf).amax(-1)
