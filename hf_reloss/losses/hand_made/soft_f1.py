"""Macro-F1 with probabilities for decisions."""

import torch

from ..base import Evidence
from .base import HandMadeLoss, due_classes, mean_where


class SoftF1(HandMadeLoss):
    """1 less the mean, over the classes of the batch, of 2 Σ p t / Σ (p + t), t being 1 where a class is due."""

    architecture = "soft_f1"

    def forward(self, evidence: Evidence) -> torch.Tensor:
        due = due_classes(evidence)
        probabilities = evidence.outputs.softmax(-1) * evidence.counts[..., None]
        f1 = 2 * (probabilities * due).sum(-2) / (probabilities + due).sum(-2).clamp(min=1e-9)
        present = due.sum(-2) > 0
        return present.any(-1) * 1.0 - mean_where(f1, present)
