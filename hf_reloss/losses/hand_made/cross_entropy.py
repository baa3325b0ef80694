"""Cross-entropy."""

import torch

from ..base import Evidence
from .base import HandMadeLoss


class CrossEntropy(HandMadeLoss):
    """-log p(label)."""

    architecture = "cross_entropy"
    tasks = ("classification", "tokens")

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return self.label_losses(evidence)
