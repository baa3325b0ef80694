"""Losses for segmentation: the share of right pixels, and counts of pixels per class, soft."""

from collections.abc import Mapping
from typing import Any

import torch

from ..base import Evidence
from ..layers import label_margin, logit_scale
from .counts import CountNetwork
from .margin import MarginNetwork

GENERAL_SCORES: dict[str, dict[str, Any]] = {"mean_iou": {}, "pixel_accuracy": {}}
"""What the surrogate of an unknown metric mixes."""


class PixelMarginNetwork(MarginNetwork):
    """The mean over pixels of softplus(-g(m)) + κ‖z - z̄‖: pixel accuracy, made soft, as `MarginNetwork`."""

    architecture = "margin"
    tasks = ("segmentation",)
    count_dims = 2


class PixelCountNetwork(CountNetwork):
    """A `ScoreMixture` of metrics of soft counts of the pixels of a group, such as mean IoU, plus κ‖z - z̄‖.

    As `CountNetwork`, with a spline that is learned above 0 only. There, where p > 1/2, each pixel has one class at
    most: of all others the soft count is the probability itself, and nothing wider than the logits is made.
    """

    architecture = "counts"
    tasks = ("segmentation",)
    count_dims = 2

    def __init__(
        self,
        *,
        scores: Mapping[str, Mapping[str, Any]] | None = None,
        num_knots: int = 16,
        knot_range: float = 4.0,
        scale_weight: float = 0.1,
    ):
        super().__init__(
            scores=scores or GENERAL_SCORES,
            num_knots=num_knots,
            knot_range=knot_range,
            trust_region=True,
            scale_weight=scale_weight,
        )
        if self.of_examples:
            raise ValueError("scores are of the pixels of all images together, not of each (average='samples').")

    def forward(self, evidence: Evidence) -> torch.Tensor:
        sizes = logit_scale(evidence.outputs)[..., 0]
        return self.score(self.sums(evidence)) + self.pull * self.mean(sizes, evidence.counts)

    def sums(self, evidence: Evidence) -> torch.Tensor:
        """Soft counts [..., 3 C] of the pixels [..., N, P] of each group."""
        logits, labels, counts = evidence.outputs, evidence.labels, evidence.counts.to(evidence.outputs)
        top = logits.argmax(-1)
        surest = torch.sigmoid(self.spline(label_margin(logits, top)))
        soft = logits.softmax(-1).scatter(-1, top[..., None], surest[..., None])
        hits = soft.gather(-1, labels[..., None])[..., 0] * counts
        none = soft.new_zeros(*soft.shape[:-3], soft.shape[-1])
        of_label = (none.scatter_add(-1, labels.flatten(-2), each.flatten(-2)) for each in (hits, counts))
        right, number = of_label
        return torch.cat([right, torch.einsum("...npc,...np->...c", soft, counts), number], dim=-1)
