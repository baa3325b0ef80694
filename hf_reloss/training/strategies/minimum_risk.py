"""Minimum risk training: the loss is the expected risk of texts that the model itself writes.

Shen et al. 2016, Minimum Risk Training for Neural Machine Translation, arXiv:1512.02433; mixed with cross-entropy:
Edunov et al. 2018, Classical Structured Prediction Losses for Sequence to Sequence Learning, arXiv:1711.04956. For the
word error rate: Prabhavalkar et al. 2018, Minimum Word Error Rate Training for Attention-based Sequence-to-Sequence
Models, arXiv:1712.01818; with samples: Shannon 2017, Optimizing Expected Word Error Rate via Sampling for Speech
Recognition, arXiv:1706.02776.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from .aligned import Aligned
from .base import LossDescription
from .own_texts import Compared, OnOwnTexts


def expected_risk(log_probabilities: torch.Tensor, risks: torch.Tensor, alpha: float = 5e-3) -> torch.Tensor:
    """Σ_k Q_k Δ_k with Q_k = p_k^α / Σ_j p_j^α, the R̃(θ) of Shen et al. 2016 for each example.

    Args:
        log_probabilities: [..., K] float, log p(y_k|x) of the candidates; -inf where there is none.
        risks: [..., K] float, Δ_k.
        alpha: how sharp Q is, above 0.

    Returns:
        [...] of the type of `log_probabilities`.

    Example:
        >>> expected_risk(torch.tensor([0.25, 0.75]).log(), torch.tensor([1.0, 0.0]), alpha=1.0)
        tensor(0.2500)
    """
    return ((alpha * log_probabilities).softmax(-1) * risks).sum(-1)


class MinimumRisk(OnOwnTexts):
    """The expected risk of what a model writes: `ReLossSeq2SeqTrainer(..., surrogate="minimum_risk")`."""

    word = "minimum_risk"
    citation = "Shen et al. 2016, arXiv:1512.02433; of CTC: Shannon 2017, arXiv:1706.02776"
    defaults: ClassVar[Mapping[str, Any]] = {"candidates": 4, "alpha": 5e-3, "reference": True, "temperature": 1.0}
    defaults_of_ctc: ClassVar[Mapping[str, Any]] = {
        "candidates": 8,
        "alpha": 1.0,
        "reference": False,
        "temperature": 1.0,
    }

    def prepare(self, trainer: Any) -> None:
        """As of any that compares a model's own texts.

        Raises:
            ValueError: as there, and for an alpha of 0 or less.
        """
        super().prepare(trainer)
        self.alpha: float = self.settings["alpha"]
        if self.alpha <= 0:
            raise ValueError(
                f"risk_alpha is the power of the candidates' probabilities, above 0, but got {self.alpha}."
            )

    def describe(self) -> LossDescription:
        of_ctc = isinstance(self.source, Aligned)
        return LossDescription(
            "minimum risk",
            sentence=f"for the least expected risk of what it writes, by the metric {self.risk.metric.signature}",
            paper=("minimum risk training", f"https://arxiv.org/abs/{'1706.02776' if of_ctc else '1512.02433'}"),
        )

    def loss_of_each(self, compared: Compared) -> torch.Tensor:
        log_probabilities = compared.log_probabilities.masked_fill(~compared.distinct, -torch.inf)
        return expected_risk(log_probabilities, compared.risks, self.alpha)
