"""Area under the ROC curve by a squared hinge over pairs (Gao et al. 2013; the square loss of Yuan et al. 2021)."""

from typing import ClassVar

import torch

from ..base import Evidence
from .base import HandMadeLoss, due_classes, mean_where


class AucMargin(HandMadeLoss):
    """The mean, over the classes of the batch, of max(0, m - (p_i - p_j))² over pairs.

    i is an example of the class and j one of another, p the class's probability and m a margin.
    """

    architecture = "auc_margin"
    options: ClassVar[dict[str, float]] = {"margin": 1.0}
    margin: float

    def forward(self, evidence: Evidence) -> torch.Tensor:
        due = due_classes(evidence).transpose(-1, -2)
        other = evidence.counts[..., None, :].to(due) - due
        scores = evidence.outputs.softmax(-1).transpose(-1, -2)
        short = (self.margin - (scores[..., :, None] - scores[..., None, :])).clamp(min=0).square()
        pairs = due[..., :, None] * other[..., None, :]
        number = pairs.sum((-1, -2))
        return mean_where((short * pairs).sum((-1, -2)) / number.clamp(min=1), number > 0)
