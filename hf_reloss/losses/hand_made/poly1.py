"""Poly-1 (Leng et al. 2022, arXiv:2204.12511, equation 5)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss


class Poly1(HandMadeLoss):
    """-log p + ε (1 - p): cross-entropy with more weight on the first term of its series."""

    architecture = "poly1"
    tasks = ("classification", "tokens")
    options: ClassVar[dict[str, float]] = {"epsilon": 1.0}
    epsilon: float

    def losses(self, evidence: Evidence) -> torch.Tensor:
        losses = self.label_losses(evidence)
        return losses - self.epsilon * torch.expm1(-losses)
