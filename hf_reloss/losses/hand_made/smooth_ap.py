"""Smooth average precision (Brown et al. 2020, arXiv:2007.12163, equation 7)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss
from .pairs import label_probabilities, mean_over_classes, same_class


class SmoothAP(HandMadeLoss):
    """1 less the mean, over the classes of the batch, of the average precision of ranking by the class's probability.

    Whether one example is before another is a sigmoid of the difference, of temperature τ. Takes O(N²) of memory.
    """

    architecture = "smooth_ap"
    options: ClassVar[dict[str, float]] = {"tau": 0.1}
    tau: float

    def forward(self, evidence: Evidence) -> torch.Tensor:
        scores, same = label_probabilities(evidence), same_class(evidence)
        own = scores.diagonal(dim1=-2, dim2=-1)[..., None]
        before = torch.sigmoid((scores - own) / self.tau) * evidence.counts[..., None, :]
        before = before - torch.diag_embed(before.diagonal(dim1=-2, dim2=-1))
        precision = (1 + (before * same).sum(-1)) / (1 + before.sum(-1))
        counts = evidence.counts
        return counts.any(-1) * 1.0 - mean_over_classes(precision, same.sum(-1), counts, same.sum(-1))
