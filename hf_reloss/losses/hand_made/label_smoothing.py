"""Label smoothing (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss, cross_entropies


class LabelSmoothing(HandMadeLoss):
    """Cross-entropy against a target of which the share `epsilon` is spread evenly over all classes."""

    architecture = "label_smoothing"
    options: ClassVar[dict[str, float]] = {"epsilon": 0.1}
    epsilon: float

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return cross_entropies(evidence.outputs, evidence.labels, label_smoothing=self.epsilon)
