"""Lovász-softmax (Berman et al. 2018, arXiv:1705.08790, equations 9 to 12): mean intersection over union."""

import torch

from ..base import Evidence
from .base import HandMadeLoss, due_classes, mean_where


class Lovasz(HandMadeLoss):
    """The mean, over the classes of the batch, of the Lovász extension of the Jaccard loss at the errors |t - p|."""

    architecture = "lovasz"

    def forward(self, evidence: Evidence) -> torch.Tensor:
        due = due_classes(evidence)
        errors = (due - evidence.outputs.softmax(-1)).abs() * evidence.counts[..., None]
        errors, order = errors.sort(dim=-2, descending=True)
        due, present = due.gather(-2, order), due.sum(-2) > 0
        counts = evidence.counts[..., None].expand_as(due).to(due).gather(-2, order)
        number = due.sum(-2, keepdim=True)
        intersection = number - due.cumsum(-2)
        union = number + (counts - due).cumsum(-2)
        jaccard = 1 - intersection / union.clamp(min=1)
        weights = torch.cat([jaccard[..., :1, :], jaccard.diff(dim=-2)], dim=-2)
        return mean_where((errors * weights).sum(-2), present)
