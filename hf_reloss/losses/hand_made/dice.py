"""Dice loss (Milletari et al. 2016, arXiv:1606.04797), with cross-entropy as in nnU-Net (Isensee et al. 2021)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss, soft_dice, together


class Dice(HandMadeLoss):
    """1 less the mean, over the classes of the batch, of 2 Σ p t / Σ (p + t) over its pixels, with cross-entropy.

    t is 1 where the pixel is of the class; `cross_entropy` is the share of cross-entropy in the sum.
    """

    architecture = "dice"
    tasks = ("segmentation",)
    options: ClassVar[dict[str, float]] = {"cross_entropy": 0.5}
    cross_entropy: float

    def forward(self, evidence: Evidence) -> torch.Tensor:
        of_labels = self.mean(self.label_losses(evidence), evidence.counts)
        return (1 - self.cross_entropy) * soft_dice(together(evidence)) + self.cross_entropy * of_labels
