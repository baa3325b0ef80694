"""Thresholds of labels, where each example may have several: for every metric of counts there are best ones.

Koyejo et al. 2015, Consistent Multilabel Classification; for F1 of one label Lipton et al. 2014, arXiv:1402.1892, where
it is half of the best F1.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .base import DecisionRule


class LabelThresholds(DecisionRule):
    """Decides for each label with a logit above its threshold.

    In the bias of a model's last layer they are there for every pipeline and server, see `fold`.

    Args:
        thresholds: [L], of logits.
    """

    word = "thresholds"

    def __init__(self, thresholds: Sequence[float] | torch.Tensor):
        self.thresholds = torch.as_tensor(thresholds, dtype=torch.float64)

    @property
    def classes(self) -> int:
        return len(self.thresholds)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [..., L] that are above 0 where the label is decided for."""
        return logits - self.thresholds.to(logits)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """1 where a label is decided for, else 0: [..., L] int64 of logits [..., L], a tensor or an array."""
        return (self.scores(torch.as_tensor(logits)) > 0).long()

    def offsets(self) -> torch.Tensor:
        return -self.thresholds

    def drawn(self) -> dict[str, torch.Tensor]:
        return {"threshold of the probability": self.thresholds.sigmoid()}

    def to_dict(self) -> dict[str, Any]:
        return {"thresholds": [round(value, 6) for value in self.thresholds.tolist()]}
