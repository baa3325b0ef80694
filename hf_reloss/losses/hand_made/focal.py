"""Focal loss (Lin et al. 2017, arXiv:1708.02002, equation 4)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss


class Focal(HandMadeLoss):
    """-(1 - p)^γ log p, with p the probability of the label."""

    architecture = "focal"
    tasks = ("classification", "tokens", "multilabel", "segmentation")
    options: ClassVar[dict[str, float]] = {"gamma": 2.0}
    gamma: float

    def losses(self, evidence: Evidence) -> torch.Tensor:
        losses = self.label_losses(evidence)
        # Of (1 - p)^γ with γ < 1 the gradient has no bound at p = 1.
        return (-torch.expm1(-losses)).clamp(min=1e-6) ** self.gamma * losses
