"""The expected credit of an answer's boundaries: F1 and exact match of spans, made soft."""

import torch
import torch.nn.functional as F
from torch import nn

from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline

NEVER = -1e4
"""The logit of what is impossible. Finite, so that no gradient is NaN."""


class OverlapNetwork(SurrogateNetwork):
    """The mean of softplus(-g(m)) over an answer's two boundaries, and κ times the scale of their logits.

    m is the margin of the expected credit of a boundary, g an increasing spline. A position's credit c as start is that
    of the span from there to the right end, as end that of the one from the right start: 1 for the right one, 0 for
    those that share nothing with the answer, between these F1^γ, with γ = 16 at the start and learned, or for exact
    match 0. With P the softmax of the logits, the expected credit C = Σ P c has the margin m = log C - log(1 - C). At
    the start, with g the identity, the loss is -log C: for exact match cross-entropy.

    The scale is the standard deviation of the logits of all positions that can be. The best span does not depend on it,
    and a model could make it grow without end to lower its loss. Of recordings, which do not hold it, it is left out.

    But for that scale, it never costs more to move probability to a boundary of more credit, whatever was learned.
    """

    architecture = "overlap"
    tasks = ("spans",)
    gradient_penalty = 0.03
    power = 16.0
    """γ at the start."""

    def __init__(
        self,
        *,
        credit: str = "f1",
        num_knots: int = 16,
        knot_range: float = 4.0,
        trust_region: bool = False,
        scale_weight: float = 0.1,
    ):
        super().__init__()
        if credit not in ("f1", "exact"):
            raise ValueError(f"'overlap' wants the credit 'f1' or 'exact', but got {credit!r}.")
        self.pull = scale_weight
        self.spline = MonotoneSpline(num_knots, knot_range, trust_region=trust_region)
        self.log_power = nn.Parameter(torch.zeros(())) if credit == "f1" else None

    def losses(self, evidence: Evidence) -> torch.Tensor:
        logits = evidence.outputs
        recorded = evidence.labels.dim() > evidence.counts.dim() + 1
        places = evidence.labels[..., 1:] if recorded else torch.arange(logits.shape[-1], device=logits.device)[None]
        gold = evidence.labels[..., 0] if recorded else evidence.labels
        log_credit, log_rest = self._credits(boundary_f1(gold, places))
        losses = self.curve((logits + log_credit).logsumexp(-1) - (logits + log_rest).logsumexp(-1))
        if not recorded:
            losses = losses + self.pull * _scale(logits)
        return losses.mean(-1)

    def _credits(self, f1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log c and log(1 - c) of boundaries [...] with an F1 in [0, 1]."""
        right = f1 >= 1 - 1e-6
        some = (f1 > 0) & ~right
        log_credit, log_rest = (~right * NEVER).to(f1), right * torch.tensor(NEVER).to(f1)
        if self.log_power is None:
            return log_credit, log_rest
        log_power = (self.power * self.log_power.exp() * f1.where(some, 0.5).log()).clamp(max=-1e-6)
        return log_power.where(some, log_credit), (-torch.expm1(log_power)).log().where(some, log_rest)

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """The loss of margins of the expected credit."""
        return F.softplus(-self.spline(points))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)


def boundary_f1(gold: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """F1 of the positions of spans of which one boundary is right with those of the right ones, [..., 2, L].

    Where there is no answer, which positions of 0 say, only these are right.

    Args:
        gold: [..., 2], first and last positions of the right spans.
        places: the other boundary, starts before ends: of a shape that broadcasts to [..., 2, L]; below 0 is none.
    """
    start, end = gold[..., :1, None], gold[..., 1:, None]
    size = torch.cat([end - places[..., :1, :], places[..., -1:, :] - start], dim=-2) + 1
    f1 = 2 * torch.minimum(size, end - start + 1).clamp(min=0) / (size.clamp(min=1) + end - start + 1)
    return torch.where(end == 0, places == 0, f1 * (places >= 0))


def _scale(logits: torch.Tensor) -> torch.Tensor:
    """Standard deviations [...] of logits [..., L], but for those of positions that cannot be."""
    possible = logits > NEVER / 2
    number = possible.sum(-1, keepdim=True).clamp(min=1)
    mean = logits.where(possible, 0.0).sum(-1, keepdim=True) / number
    return ((logits - mean).where(possible, 0.0).square().sum(-1) / number[..., 0] + 1e-12).sqrt()
