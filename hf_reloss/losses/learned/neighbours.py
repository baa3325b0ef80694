"""A loss of embeddings: whether the nearest one is of the same class, soft."""

import torch
import torch.nn.functional as F

from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline

LEAST_NORM = 1e-4
"""Shorter embeddings are not scaled to 1, so that gradients stay finite where they vanish."""

NONE = -1e9
"""Stands for the cosine with what is no neighbour: without it, sums over nothing have no gradient."""


class NeighbourNetwork(SurrogateNetwork):
    """softplus(-g(m)), the mean over the queries of a group: Recall@1, soft.

    Each example is a query against all others of its group. One of these is drawn, the nearer the likelier, by the
    softmax of cosines over a temperature; p is the probability that it is of the query's class, and m = log p/(1-p)
    the margin (Goldberger et al. 2004, "Neighbourhood components analysis"). g is an increasing spline that is learned.
    At its start the loss of a query is -log p. One that is the only example of its class, or has none of another class
    beside it, is no query; the loss of a group without queries is 0.

    With k > 1 the loss is the same: a batch has far fewer examples of other classes than what is searched in the end,
    of which what is among the k nearest there mostly is the first here.

    Args:
        temperature: that cosines are divided by.
    """

    architecture = "neighbours"
    tasks = ("embeddings",)
    gradient_penalty = 0.03

    def __init__(
        self, *, temperature: float = 0.1, num_knots: int = 16, knot_range: float = 4.0, trust_region: bool = False
    ):
        super().__init__()
        if not 0 < temperature <= 10:
            raise ValueError(
                "The architecture 'neighbours' wants a temperature above 0, up to 10, among its options, but got "
                f"{temperature!r}."
            )
        self.temperature = temperature
        self.spline = MonotoneSpline(num_knots, knot_range, trust_region=trust_region)

    def forward(self, evidence: Evidence) -> torch.Tensor:
        nearness, same, other = neighbours(evidence, self.temperature)
        is_query = same.any(-1) & other.any(-1)
        margin = (log_sums(nearness, same) - log_sums(nearness, other)).masked_fill(~is_query, 0.0)
        return self.mean(self.curve(margin), is_query)

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.spline(points))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)


def supervised_contrastive(evidence: Evidence, temperature: float = 0.1) -> torch.Tensor:
    """The losses [..., N] of Khosla et al. 2020, arXiv:2004.11362, equation 2; 0 of the only example of a class."""
    nearness, same, other = neighbours(evidence, temperature)
    log_probability = nearness - log_sums(nearness, same | other)[..., None]
    return -log_probability.masked_fill(~same, 0.0).sum(-1) / same.sum(-1).clamp(min=1)


def neighbours(evidence: Evidence, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosines of examples with each other, over a temperature, [..., N, N], and which neighbours are of one class, and
    of others: [..., N, N] bool each. No example is a neighbour of itself, nor is what does not count."""
    unit = F.normalize(evidence.outputs, dim=-1, eps=LEAST_NORM)
    pairs = evidence.counts[..., :, None] & evidence.counts[..., None, :]
    same = evidence.labels[..., :, None] == evidence.labels[..., None, :]
    itself = torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)
    return unit @ unit.transpose(-1, -2) / temperature, pairs & same & ~itself, pairs & ~same


def log_sums(nearness: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """log Σ exp [...] of some of the last dimension."""
    return nearness.masked_fill(~chosen, NONE).logsumexp(-1)
