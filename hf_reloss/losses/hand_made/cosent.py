"""CoSENT (Su 2022, kexue.fm/archives/8847), as sentence-transformers' `CoSENTLoss` has it."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss


class CoSENT(HandMadeLoss):
    """log(1 + Σ exp(λ (s_i - s_j))) over the pairs of a group of which example j has the higher label.

    Scores s are the values of a model. Level and, without errors of order, scale of them are left open. Takes O(N²) of
    memory.
    """

    architecture = "cosent"
    tasks = ("regression",)
    options: ClassVar[dict[str, float]] = {"scale": 1.0}
    scale: float

    def forward(self, evidence: Evidence) -> torch.Tensor:
        values, labels, counts = evidence.outputs[..., 0], evidence.labels, evidence.counts
        ordered = (labels[..., :, None] < labels[..., None, :]) & counts[..., :, None] & counts[..., None, :]
        wrong = self.scale * (values[..., :, None] - values[..., None, :])
        wrong = wrong.masked_fill(~ordered, -torch.inf).flatten(-2)
        return torch.cat([torch.zeros_like(values[..., :1].sum(-1, keepdim=True)), wrong], dim=-1).logsumexp(-1)
