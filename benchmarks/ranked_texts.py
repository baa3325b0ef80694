"""Ranking a model's own texts, two losses that benchmarks/text_candidates.py compares: surrogate="ranked_by_margin"
and "ranked_by_correlation".

The better of two texts by a metric is to be the likelier one. By margins: Liu et al. 2022, BRIO: Bringing Order to
Abstractive Summarization, arXiv:2203.16804, with its loss; of its candidates those of a beam, drawn once, here such as
the model draws at each step. By rank correlation: that of the paper on relational surrogate losses (arXiv:2202.13197),
of what is written for one source.
"""

import torch

from hf_reloss.ranking import soft_rank, spearman, standardize
from hf_reloss.training.strategies.base import LossDescription
from hf_reloss.training.strategies.own_texts import Compared, OnOwnTexts

MARGIN = 1.0
"""By how much more per token, in log probability, a text is to be likelier than one with a risk greater by 1."""


def margin_loss(likelihoods: torch.Tensor, risks: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The mean of max(0, f_j - f_i + MARGIN · (Δ_j - Δ_i)) over the pairs in which text i has the smaller risk.

    Args:
        likelihoods: [..., K] float, f_k: log p(y_k|x) per token.
        risks: [..., K] float, Δ_k.
        counts: [..., K] bool, which texts are compared.

    Returns:
        [...] of the type of `likelihoods`; 0 where no two risks differ.

    Example:
        >>> margin_loss(torch.tensor([-1.0, -1.5]), torch.tensor([0.9, 0.1]), torch.tensor([True, True]))
        tensor(1.3000)
    """
    worse = risks[..., None, :] - risks[..., :, None]  # by how much j is worse than i
    pairs = (worse > 0) & counts[..., None, :] & counts[..., :, None]
    known = torch.where(counts, likelihoods, 0.0)
    each = (known[..., None, :] - known[..., :, None] + MARGIN * worse).clamp(min=0)
    return torch.where(pairs, each, 0.0).sum((-2, -1)) / pairs.sum((-2, -1)).clamp(min=1)


def rank_correlation_loss(likelihoods: torch.Tensor, risks: torch.Tensor) -> torch.Tensor:
    """1 less Spearman's correlation of soft ranks of likelihoods with -Δ: [N], 0 where risks or likelihoods are alike.

    Args:
        likelihoods: [N, K] float32, log p(y_k|x) per token.
        risks: [N, K] float32, Δ_k.
    """
    differ = (risks.amax(-1) > risks.amin(-1)) & (likelihoods.amax(-1) > likelihoods.amin(-1))
    found = 1 - spearman(standardize(likelihoods[differ]), -risks[differ], soft_rank)
    return torch.zeros(len(risks)).to(found).masked_scatter(differ, found)


class Ranked(OnOwnTexts):
    """Ranks what a model writes, beside a share of the model's own loss, by default a quarter."""

    @property
    def default_own_share(self) -> float:
        return 0.25

    def describe(self) -> LossDescription:
        return LossDescription(
            "the ranking of what it writes",
            sentence=f"to rank what it writes as the metric {self.risk.metric.signature} does",
        )


class RankedByMargin(Ranked):
    """By margins."""

    word = "ranked_by_margin"

    def loss_of_each(self, compared: Compared) -> torch.Tensor:
        return margin_loss(compared.log_probabilities / compared.lengths, compared.risks, compared.distinct)


class RankedByCorrelation(Ranked):
    """By rank correlation."""

    word = "ranked_by_correlation"

    def loss_of_each(self, compared: Compared) -> torch.Tensor:
        return rank_correlation_loss(compared.log_probabilities / compared.lengths, compared.risks)
