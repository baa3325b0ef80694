"""Smooth average precision (Brown et al. 2020, arXiv:2007.12163, equation 7)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss, due_classes, mean_where


class SmoothAP(HandMadeLoss):
    """1 less the mean, over the classes of the batch, of the average precision of ranking by the class's probability.

    Whether one example is before another is a sigmoid of the difference, of temperature τ.
    """

    architecture = "smooth_ap"
    options: ClassVar[dict[str, float]] = {"tau": 0.1}
    tau: float

    def forward(self, evidence: Evidence) -> torch.Tensor:
        due = due_classes(evidence).transpose(-1, -2)
        scores = evidence.outputs.softmax(-1).transpose(-1, -2)
        before = torch.sigmoid((scores[..., None, :] - scores[..., :, None]) / self.tau)
        before = before * evidence.counts[..., None, None, :]
        before = before - torch.diag_embed(before.diagonal(dim1=-2, dim2=-1))
        precision = (1 + (before * due[..., None, :]).sum(-1)) / (1 + before.sum(-1))
        number = due.sum(-1)
        ap = (precision * due).sum(-1) / number.clamp(min=1)
        return (number > 0).any(-1) * 1.0 - mean_where(ap, number > 0)
