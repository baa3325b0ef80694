"""The smooth absolute error (Huber 1964, Robust Estimation of a Location Parameter)."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from ..base import Evidence
from .base import HandMadeLoss


class Huber(HandMadeLoss):
    """|e| - δ/2 of an error e, and e² / 2δ where it is less than δ: torch's smooth L1 loss."""

    architecture = "huber"
    tasks = ("regression",)
    options: ClassVar[dict[str, float]] = {"delta": 1.0}
    delta: float

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return F.smooth_l1_loss(evidence.outputs[..., 0], evidence.labels, reduction="none", beta=self.delta)
