"""Cross-entropy."""

import torch

from ..base import Evidence
from .base import HandMadeLoss, cross_entropies


class CrossEntropy(HandMadeLoss):
    """-log p(label)."""

    architecture = "cross_entropy"

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return cross_entropies(evidence.outputs, evidence.labels)
