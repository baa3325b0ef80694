"""Lovász-softmax (Berman et al. 2018, arXiv:1705.08790, equations 9 to 12): mean intersection over union."""

from typing import Any, ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss, mean_where, one_hot_labels, together


class Lovasz(HandMadeLoss):
    """The mean, over the classes of the batch, of the Lovász extension of the Jaccard loss at the errors |t - p|.

    `cross_entropy` is the share of cross-entropy in the sum: by default 0 or, of pixels, where it is used like that,
    0.5.
    """

    architecture = "lovasz"
    tasks = ("classification", "segmentation")
    options: ClassVar[dict[str, float | None]] = {"cross_entropy": None}
    cross_entropy: float | None

    def __init__(self, task: str | None = None, **given: Any):
        super().__init__(task, **given)
        if self.cross_entropy is None:
            self.cross_entropy = 0.5 if self.of_pixels else 0.0

    def forward(self, evidence: Evidence) -> torch.Tensor:
        share = self.cross_entropy or 0.0
        of_labels = self.mean(self.label_losses(evidence), evidence.counts) if share else 0.0
        return (1 - share) * self.extension(together(evidence) if self.of_pixels else evidence) + share * of_labels

    def extension(self, evidence: Evidence) -> torch.Tensor:
        """The Lovász extension [...] of evidence [..., N, C]."""
        targets = one_hot_labels(evidence)
        errors = (targets - evidence.outputs.softmax(-1)).abs() * evidence.counts[..., None]
        errors, order = errors.sort(dim=-2, descending=True)
        targets, present = targets.gather(-2, order), targets.sum(-2) > 0
        counts = evidence.counts[..., None].expand_as(targets).to(targets).gather(-2, order)
        number = targets.sum(-2, keepdim=True)
        intersection = number - targets.cumsum(-2)
        union = number + (counts - targets).cumsum(-2)
        jaccard = 1 - intersection / union.clamp(min=1)
        weights = torch.cat([jaccard[..., :1, :], jaccard.diff(dim=-2)], dim=-2)
        return mean_where((errors * weights).sum(-2), present)
