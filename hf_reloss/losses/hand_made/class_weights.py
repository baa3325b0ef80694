"""Cross-entropy in which all classes weigh the same."""

import torch

from ..base import Evidence
from .base import HandMadeLoss


class ClassWeights(HandMadeLoss):
    """-log p(y) / (C f_y), with f_y the frequency of the label's class: 1 on average over the training data."""

    architecture = "class_weights"
    tasks = ("classification", "tokens")
    wants_frequencies = True

    def losses(self, evidence: Evidence) -> torch.Tensor:
        frequencies = self.checked(evidence)
        weights = 1 / (len(frequencies) * frequencies)
        return weights[evidence.labels] * self.label_losses(evidence)
