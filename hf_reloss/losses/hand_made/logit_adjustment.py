"""Logit adjustment (Menon et al. 2021, arXiv:2007.07314, equation 10)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss, cross_entropies


class LogitAdjustment(HandMadeLoss):
    """Cross-entropy of logits to which τ times the log frequencies of the classes are added."""

    architecture = "logit_adjustment"
    options: ClassVar[dict[str, float]] = {"tau": 1.0}
    tau: float
    wants_frequencies = True

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return cross_entropies(evidence.outputs + self.tau * self.checked(evidence).log(), evidence.labels)
