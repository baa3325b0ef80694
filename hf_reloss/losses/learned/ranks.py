"""Losses of rankings: metrics of which documents of a query stand above which, soft."""

from collections.abc import Mapping
from typing import Any

import torch

from ...metrics import load_metric
from ...metrics.ranking import RankingMetric
from ...ranking import probability_above
from ..base import Evidence
from .labels import LabelMarginNetwork, sizes


class RankNetwork(LabelMarginNetwork):
    """A metric of rankings of soft ranks, for each query.

    With S the metric where each comparison of two documents counts with its probability, the sigmoid of the difference
    of their scores (Qin et al. 2010, "A general approximation framework for direct optimization of information
    retrieval measures"), the loss of a query is softplus(-g(log S/(1-S))), with g an increasing spline that is learned:
    at its start, -log S. Added to that is κ times the mean |z| of its documents. All places count, also with `k`: what
    lies beyond the first has to be drawn up there. A query of which nothing, or all, is relevant has a loss of 0, but
    for the pull κ. The loss of a group is the mean over its queries, each divided among its documents.

    Args:
        scores: the one metric, by its name, with its options: `SOFT` has their names.
    """

    architecture = "ranks"

    def __init__(
        self,
        *,
        scores: Mapping[str, Mapping[str, Any]] | None = None,
        num_knots: int = 16,
        knot_range: float = 4.0,
        trust_region: bool = False,
        scale_weight: float = 0.1,
    ):
        super().__init__(
            num_knots=num_knots, knot_range=knot_range, trust_region=trust_region, scale_weight=scale_weight
        )
        metrics = [load_metric(name, **given) for name, given in (scores or {}).items()]
        if len(metrics) != 1 or not isinstance(metrics[0], RankingMetric):
            named = ", ".join(metric.name for metric in metrics) or "none"
            raise ValueError(
                "The architecture 'ranks' wants one metric of rankings, such as scores={'ndcg': {}}, but got "
                f"{named}; SurrogateForMultilabel.for_metric chooses it."
            )
        self.soft = SOFT[metrics[0].name]

    def losses(self, evidence: Evidence) -> torch.Tensor:
        number = evidence.counts.sum(-1, keepdim=True).clamp(min=1)
        return (self.of_queries(evidence) + self.pull * sizes(evidence)) / number

    def number(self, counts: torch.Tensor) -> torch.Tensor:
        return counts.any(-1).sum(-1)

    def of_queries(self, evidence: Evidence) -> torch.Tensor:
        """The losses [..., N, 1] of queries, without the pull."""
        scores, counts = evidence.outputs[..., 0], evidence.counts
        relevance = evidence.labels.to(scores) * counts
        relevant = relevance > 0
        most = max(1, int(relevant.sum(-1).max())) if relevant.numel() else 1
        relevance_of, place = relevance.topk(most, dim=-1)  # of the relevant documents alone, which are few
        score_of = scores.gather(-1, place)
        above = probability_above(score_of, scores) * counts[..., None, :]
        above = above.scatter(-1, place[..., None], 0.0)  # no document is above itself
        soft = self.soft(above, score_of, relevance_of, relevant).clamp(1e-6, 1 - 1e-6)
        judged = relevant.any(-1) & (counts & ~relevant).any(-1)
        return (self.curve(soft.log() - torch.log1p(-soft)) * judged)[..., None]


def soft_ndcg(
    above: torch.Tensor, scores: torch.Tensor, relevance: torch.Tensor, relevant: torch.Tensor
) -> torch.Tensor:
    """Soft nDCG [...] of queries.

    Args:
        above: [..., R, D], the probability that each document stands above each of the R most relevant ones.
        scores, relevance: [..., R] of these; a relevance of 0 where there are fewer.
        relevant: [..., D] bool, of all documents.
    """
    discounted = relevance / (2 + above.sum(-1)).log2()
    places = torch.arange(relevance.shape[-1], device=relevance.device)
    ideal = relevance / (2.0 + places).log2()  # they come in descending order
    return discounted.sum(-1) / ideal.sum(-1).clamp(min=1e-9)


def soft_average_precision(
    above: torch.Tensor, scores: torch.Tensor, relevance: torch.Tensor, relevant: torch.Tensor
) -> torch.Tensor:
    """Soft average precision [...] of queries; arguments as of `soft_ndcg`."""
    wanted = (relevance > 0).to(above)
    precision = (1 + (above * relevant[..., None, :]).sum(-1)) / (1 + above.sum(-1))
    return (precision * wanted).sum(-1) / wanted.sum(-1).clamp(min=1)


def soft_reciprocal_rank(
    above: torch.Tensor, scores: torch.Tensor, relevance: torch.Tensor, relevant: torch.Tensor
) -> torch.Tensor:
    """Soft 1 / place [...] of the relevant document that scores highest; arguments as of `soft_ndcg`."""
    best = scores.masked_fill(relevance <= 0, -torch.inf).argmax(-1)[..., None, None]
    above = above.gather(-2, best.expand(*best.shape[:-1], above.shape[-1]))[..., 0, :]
    return 1 / (1 + (above * ~relevant).sum(-1))


SOFT = {
    "ndcg": soft_ndcg,
    "map": soft_average_precision,
    "mrr": soft_reciprocal_rank,
    "precision_at_k": soft_average_precision,
    "ranked_recall_at_k": soft_average_precision,
}
"""The soft forms of metrics, by name; of shares of the first places, without that limit, the mean precision."""
