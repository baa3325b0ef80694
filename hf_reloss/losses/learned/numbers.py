"""Losses for one number per example: errors by a curve that is learned, and correlations of a group."""

import torch
from torch import nn

from ...ranking import hard_rank, soft_rank
from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline

LITTLE = 1e-6
"""Kept off 0 below roots."""


class NumberNetwork(SurrogateNetwork):
    """What losses of numbers share: the standard deviation of the labels, in units of which errors are."""

    scale: torch.Tensor
    gradient_penalty = 0.03

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def errors(self, evidence: Evidence) -> torch.Tensor:
        """Standardised differences [..., N]."""
        return (evidence.outputs[..., 0] - evidence.labels) / self.scale

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)


class ErrorNetwork(NumberNetwork):
    """The mean of f(g(|e|)) of standardised errors e, with g an increasing spline that is learned.

    Args:
        power: 2 for f(x) = x², the squared error; 1 for √(x² + 0.01) - 0.1, a smooth absolute error.
        num_knots, knot_range: of the spline.
    """

    architecture = "errors"
    tasks = ("regression",)
    curve_of = "error"

    def __init__(self, *, power: int = 2, num_knots: int = 16, knot_range: float = 4.0):
        super().__init__()
        if power not in (1, 2):
            raise ValueError(f"The architecture 'errors' wants power 1 or 2 among its options, but got {power!r}.")
        self.power = power
        self.spline = MonotoneSpline(num_knots, knot_range, anchored=True)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return self.curve(self.errors(evidence))

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        bent = self.spline(points.abs())
        return bent.square() if self.power == 2 else (bent.square() + 0.01).sqrt() - 0.1


class AgreementNetwork(NumberNetwork):
    """1 - ρ of a group, with ρ the correlation of outputs and labels, plus a share of the mean squared error.

    Correlations do not see level and scale of the outputs, which the squared error, of standardised errors, holds. How
    much it weighs is learned, around `share`. Of ranks, ρ is that of soft ranks of the standardised outputs and average
    ranks of the labels. Where labels are constant, or one example counts, there is no correlation: the loss is the
    share of the squared error alone.

    Args:
        ranks: whether ρ is Spearman's; otherwise Pearson's.
        concordance: whether ρ is Lin's concordance correlation, 2 cov / (var + var + (mean - mean)²), which is what
            kappa with quadratic weights is of numbers that are not rounded.
        share: of the squared error.
        steepness: of the soft ranks.
    """

    architecture = "agreement"
    tasks = ("regression",)
    curve_of = None

    def __init__(self, *, ranks: bool = False, concordance: bool = False, share: float = 0.5, steepness: float = 5.0):
        super().__init__()
        if not share > 0:
            raise ValueError(f"The architecture 'agreement' wants a share of squared error above 0, but got {share!r}.")
        self.ranks, self.concordance, self.share, self.steepness = ranks, concordance, share, steepness
        self.log_weight = nn.Parameter(torch.zeros(()))

    def forward(self, evidence: Evidence) -> torch.Tensor:
        counts = evidence.counts
        outputs, labels = _standardized(evidence.outputs[..., 0], counts), evidence.labels
        if self.ranks and counts.shape[-1] > 1:
            # What does not count is far above all else, and adds to no rank but its own.
            outputs = soft_rank(outputs.masked_fill(~counts, 1e4), "pairwise", self.steepness)
            labels = hard_rank(labels.masked_fill(~counts, torch.inf))
        of_group = (_standardized(outputs, counts) * _standardized(labels, counts)).sum(-1)
        rho = of_group / counts.sum(-1).clamp(min=1)
        if self.concordance:
            rho = _concordance(evidence.outputs[..., 0], evidence.labels, counts)
        first = labels.gather(-1, counts.int().argmax(-1, keepdim=True)) if counts.shape[-1] else labels
        varied = ((labels != first) & counts).any(-1)
        squared = self.mean(self.errors(evidence).square(), counts)
        return (1 - rho) * varied + self.share * self.log_weight.tanh().exp() * squared


def _standardized(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Values [..., N] of mean 0 and standard deviation 1 among those that count; the others are 0."""
    number = counts.sum(-1, keepdim=True).clamp(min=1)
    values = values.masked_fill(~counts, 0.0)
    centred = (values - values.sum(-1, keepdim=True) / number).masked_fill(~counts, 0.0)
    return centred / ((centred.square().sum(-1, keepdim=True) / number) + LITTLE**2).sqrt()


def _concordance(values: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Lin's concordance correlation [...] of values and labels [..., N]."""
    number = counts.sum(-1).clamp(min=1)
    means = [x.masked_fill(~counts, 0.0).sum(-1) / number for x in (values, labels)]
    one, other = (
        (x - mean[..., None]).masked_fill(~counts, 0.0) for x, mean in zip((values, labels), means, strict=True)
    )
    apart = number * (means[0] - means[1]).square()
    return 2 * (one * other).sum(-1) / (one.square().sum(-1) + other.square().sum(-1) + apart + LITTLE)
