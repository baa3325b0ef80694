"""Area under the ROC curve by a squared hinge over pairs (Gao et al. 2013; the square loss of Yuan et al. 2021)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss
from .pairs import label_probabilities, mean_over_classes, same_class


class AucMargin(HandMadeLoss):
    """The mean, over the classes of the batch, of max(0, m - (p_i - p_j))² over pairs.

    i is an example of the class and j one of another, p the class's probability and m a margin. Takes O(N²) of memory.
    """

    architecture = "auc_margin"
    options: ClassVar[dict[str, float]] = {"margin": 1.0}
    margin: float

    def forward(self, evidence: Evidence) -> torch.Tensor:
        scores, same, counts = label_probabilities(evidence), same_class(evidence), evidence.counts
        other = (counts[..., :, None] & counts[..., None, :]) & ~same
        own = scores.diagonal(dim1=-2, dim2=-1)[..., None]
        short = (self.margin - (own - scores)).clamp(min=0).square().masked_fill(~other, 0.0)
        size = same.sum(-1)
        return mean_over_classes(short.sum(-1), size * other.sum(-1), counts, size)
