"""Policy gradients: a model's own texts become likelier or less so by how much better each scores than the others.

The baseline is the mean of the other texts for the same source (leave one out): Kool et al. 2019, Buy 4 REINFORCE
Samples, Get a Baseline for Free!; for language models Ahmadian et al. 2024, Back to Basics: Revisiting REINFORCE Style
Optimization for Learning from Human Feedback in LLMs, arXiv:2402.14740.
"""

from typing import Any

import torch

from .base import LossDescription
from .own_texts import Compared, OnOwnTexts


def policy_loss(log_probabilities: torch.Tensor, risks: torch.Tensor) -> torch.Tensor:
    """The surrogate of an expected risk that leaves one out: Σ_k A_k log p_k / K, where A_k is Δ_k less the mean of the
    other K - 1.

    Its gradient is an unbiased estimate of that of the expected risk, where the texts were drawn independently.

    Args:
        log_probabilities: [..., K] float, log p(y_k|x) of what was drawn, equal texts as often as they were; what is
            not finite has no part.
        risks: [..., K] float, Δ_k.

    Returns:
        [...] of the type of `log_probabilities`.

    Example:
        >>> policy_loss(torch.tensor([0.25, 0.75]).log(), torch.tensor([1.0, 0.0]))
        tensor(-0.5493)
    """
    number = risks.shape[-1]
    advantages = (risks - risks.mean(-1, keepdim=True)) * (number / max(number - 1, 1))
    possible = log_probabilities.isfinite()
    return (advantages * torch.where(possible, log_probabilities, 0.0)).mean(-1)


class PolicyGradient(OnOwnTexts):
    """Policy gradients of what a model writes: `ReLossSeq2SeqTrainer(..., surrogate="policy", metric="chrf")`.

    Each step draws anew from the model as it is, at a temperature, and log p is of what is drawn from, so no ratio of
    probabilities is there to be clipped. Beside it stays a share of the model's own loss, by default a quarter.
    """

    word = "policy"
    citation = "Ahmadian et al. 2024, arXiv:2402.14740"
    is_tempered = True

    def prepare(self, trainer: Any) -> None:
        """As of any that compares a model's own texts.

        Raises:
            ValueError: as there, and for a reference among the texts, which is not drawn from the model.
        """
        super().prepare(trainer)
        if self.with_reference:
            raise ValueError(
                "surrogate='policy' compares what the model writes with itself, so that the reference cannot be one of "
                "its texts: leave risk_reference out, or take surrogate='minimum_risk'."
            )

    @property
    def default_own_share(self) -> float:
        return 0.25

    def describe(self) -> LossDescription:
        return LossDescription(
            "a policy gradient",
            sentence=f"by policy gradients of what it writes, for the metric {self.risk.metric.signature}",
            paper=("policy gradients that leave one out", "https://arxiv.org/abs/2402.14740"),
        )

    def loss_of_each(self, compared: Compared) -> torch.Tensor:
        return policy_loss(compared.log_probabilities, compared.risks)
