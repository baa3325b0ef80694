"""Ranking a model's own texts: the better of two by a metric is to be the likelier one.

Liu et al. 2022, BRIO: Bringing Order to Abstractive Summarization, arXiv:2203.16804, with its margin loss; of their
candidates those of a beam, drawn once, here such as the model draws at each step.
"""

import torch

from .base import LossDescription
from .own_texts import Compared, OnOwnTexts

MARGIN = 1.0
"""By how much more per token, in log probability, a text is to be likelier than one whose risk is greater by 1."""


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


class RankedCandidates(OnOwnTexts):
    """Ranks what a model writes: `ReLossSeq2SeqTrainer(..., surrogate="candidates", metric="chrf")`.

    Beside the ranking stays a share of the model's own loss, by default a quarter, without which nothing holds the
    probability of the texts together.
    """

    word = "candidates"
    citation = "Liu et al. 2022, arXiv:2203.16804"

    @property
    def default_own_share(self) -> float:
        return 0.25

    def describe(self) -> LossDescription:
        return LossDescription(
            "the ranking of what it writes",
            sentence=f"to rank what it writes as the metric {self.risk.metric.signature} does",
            paper=("ranking candidates (BRIO)", "https://arxiv.org/abs/2203.16804"),
        )

    def loss_of_each(self, compared: Compared) -> torch.Tensor:
        likelihoods = compared.log_probabilities / compared.lengths
        return margin_loss(likelihoods, compared.risks, compared.distinct & likelihoods.isfinite())
