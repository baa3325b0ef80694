"""Cross-entropy in which all classes weigh the same."""

import torch

from ..base import Evidence
from .base import HandMadeLoss


class ClassWeights(HandMadeLoss):
    """-log p(y) / (C f_y), with f_y the frequency of the label's class: 1 on average over the training data.

    Of several labels for each example it is binary cross-entropy, of each label over 2 f where it holds and over
    2 (1 - f) where it does not, with f the share of the examples that have it.
    """

    architecture = "class_weights"
    tasks = ("classification", "tokens", "multilabel")
    wants_frequencies = True

    def losses(self, evidence: Evidence) -> torch.Tensor:
        frequencies = self.checked(evidence)
        if self.of_labels:
            weights = 0.5 / torch.where(evidence.labels > 0, frequencies, 1 - frequencies)
        else:
            weights = (1 / (len(frequencies) * frequencies))[evidence.labels]
        return weights * self.label_losses(evidence)
