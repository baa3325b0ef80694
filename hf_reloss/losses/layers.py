"""What the networks of surrogates are built from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class MonotoneSpline(nn.Module):
    """A strictly increasing smooth function of one variable, the identity at its start.

    Its slope is exp(θ_k) between the knots k and k+1, with smooth passages, so any values of the parameters give an
    increasing function; outside the knots it goes on straight.

    Args:
        intervals: how many slopes are learned.
        knot_range: the knots lie between -knot_range and knot_range.
        anchored: whether 0 stays 0; otherwise an offset is learned.
        trust_region: whether it stays the identity below 0, where a prediction is wrong, whatever is learned above;
            0 stays 0 then, too.
    """

    knots: torch.Tensor

    def __init__(self, intervals: int, knot_range: float, anchored: bool = False, trust_region: bool = False):
        super().__init__()
        if intervals < 3 or knot_range <= 0:
            raise ValueError(f"A spline wants 3 intervals or more and a range > 0, got {intervals} and {knot_range}.")
        self.log_slopes = nn.Parameter(torch.zeros(intervals))
        self.offset = None if anchored or trust_region else nn.Parameter(torch.zeros(()))
        self.trust_region = trust_region
        self.register_buffer("knots", torch.linspace(-knot_range, knot_range, intervals - 1))
        self.sharpness = (intervals - 2) / knot_range  # passages are half as wide as the intervals between the knots

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[...] to [...]."""
        slopes = self.log_slopes.exp()
        changes = slopes.diff() / self.sharpness
        bends = F.softplus(self._passages(x)) @ changes
        if self.offset is None:
            learned = slopes[0] * x + bends - F.softplus(self._passages(torch.zeros_like(self.knots[0]))) @ changes
        else:
            learned = slopes[0] * x + bends + self.offset
        return learned.where(x >= 0, x) if self.trust_region else learned

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """The derivative [...] at [...], above 0."""
        slopes = self.log_slopes.exp()
        learned = slopes[0] + torch.sigmoid(self._passages(x)) @ slopes.diff()
        return learned.where(x >= 0, 1.0) if self.trust_region else learned

    def _passages(self, x: torch.Tensor) -> torch.Tensor:
        """How far [..., knots] each x lies beyond each knot, in widths of a passage."""
        return (x * self.sharpness)[..., None] - self.knots * self.sharpness


class ScoreMixture(nn.Module):
    """A learned score of groups, as a loss: -Σ_j w_j Σ_k v_jk log S_jk / Σ_k v_jk.

    Each soft score S_j is a mean of parts S_jk, such as the classes of a macro average, with weights v_jk. It is the
    parts whose logarithms are averaged: the loss keeps a gradient where a part is still all wrong. The weights w are
    learned, a softmax that starts with all alike.

    Args:
        scores: how many scores are mixed.
    """

    floor = 1e-4
    """Added to each part, so that the loss is finite where it is 0."""

    def __init__(self, scores: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(scores))

    def forward(self, scores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Losses [...] of scores, each with its parts [..., P] in [0, 1] and their weights [..., P]."""
        losses = [
            -(((parts + self.floor) / (1 + self.floor)).log() * weights).sum(-1) / weights.sum(-1).clamp(min=1e-9)
            for parts, weights in scores
        ]
        return torch.stack(losses, dim=-1) @ self.weights.softmax(-1).to(losses[0])


def label_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """z_y - log Σ_{k≠y} exp(z_k), [...] of logits [..., C] and labels [...]: above 0 if p(y) > 1/2."""
    index = labels[..., None]
    return (logits.gather(-1, index) - logits.scatter(-1, index, -torch.inf).logsumexp(-1, keepdim=True)).squeeze(-1)


def binary_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit of each label that holds, and minus that of each that does not: [...] of logits and labels, 0 or 1."""
    return torch.where(labels > 0, logits, -logits)


def class_margins(logits: torch.Tensor) -> torch.Tensor:
    """The margin z_c - log Σ_{k≠c} exp(z_k) of each class, [..., C], whose sigmoid is the softmax."""
    log_probability = logits.log_softmax(-1)
    top = logits.argmax(-1)
    # Only the top class can have more than half of the probability, where 1 - p would lose its digits.
    rest = torch.log1p(-log_probability.exp().clamp(max=0.75))
    return (log_probability - rest).scatter(-1, top[..., None], label_margin(logits, top)[..., None])


def logit_scale(logits: torch.Tensor) -> torch.Tensor:
    """The norm [..., 1] of centred logits [..., C], with a gradient also where they are all the same."""
    return ((logits - logits.mean(-1, keepdim=True)).square().sum(-1, keepdim=True) + 1e-6).sqrt()
