"""Asymmetric loss (Ridnik et al. 2021, arXiv:2009.14119, equation 7)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss


class Asymmetric(HandMadeLoss):
    """-(1 - p)^γ+ log p of a label that holds, -q^γ- log(1 - q) with q = max(p - m, 0) of one that does not.

    p is the probability of the label. The defaults are the authors'.
    """

    architecture = "asymmetric"
    tasks = ("multilabel",)
    options: ClassVar[dict[str, float]] = {"gamma_positive": 0.0, "gamma_negative": 4.0, "margin": 0.05}
    gamma_positive: float
    gamma_negative: float
    margin: float

    def losses(self, evidence: Evidence) -> torch.Tensor:
        p = evidence.outputs[..., 0].sigmoid()
        q = (p - self.margin).clamp(min=0)
        of_right = (1 - p) ** self.gamma_positive * -p.clamp(min=1e-8).log()
        of_wrong = q**self.gamma_negative * -(1 - q).clamp(min=1e-8).log()
        return torch.where(evidence.labels > 0, of_right, of_wrong)
