"""Cross-entropy."""

import torch

from ..base import Evidence
from .base import HandMadeLoss


class CrossEntropy(HandMadeLoss):
    """-log p(label); of several labels for each example, the mean over them of binary cross-entropy."""

    architecture = "cross_entropy"
    tasks = ("classification", "tokens", "multilabel", "segmentation")

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return self.label_losses(evidence)
