"""Cut points of one output: which grade a number stands for, decided by the metric instead of by rounding.

As of quadratic kappa in essay scoring and ordinal regression, where squared errors draw numbers to the middle grades,
so that rounding gives too few of the extreme ones.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .base import DecisionRule

APART = 1e-6
"""Cut points are at least so far from each other."""


class CutPoints(DecisionRule):
    """Decides for the grade `lowest` plus the number of cut points that a value lies above.

    Rounded, its scores are the decision: straight lines take the cut points to the halves between
    grades, and within the range of grades values stay.

    Args:
        cut_points: [G - 1], increasing, between G grades.
        lowest: the lowest grade.
    """

    word = "cut_points"
    usual = "rounding"

    def __init__(self, cut_points: Sequence[float] | torch.Tensor, lowest: int = 0):
        self.cut_points = torch.as_tensor(cut_points, dtype=torch.float64)
        if self.cut_points.dim() != 1 or len(self.cut_points) < 1 or (self.cut_points.diff() <= 0).any():
            raise TypeError("cut points are one or more increasing numbers")
        self.lowest = int(lowest)

    @property
    def classes(self) -> int:
        return len(self.cut_points) + 1

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Values [...] or [..., 1] that round to the grade decided for, of values of that shape."""
        points = self.cut_points.to(logits.device)
        halves = self.lowest + 0.5 + torch.arange(len(points), dtype=torch.float64, device=logits.device)
        values = logits.double()
        place = torch.searchsorted(points, values)  # how many points lie below
        before, after = (place - 1).clamp(min=0), place.clamp(max=len(points) - 1)
        share = (values - points[before]) / (points[after] - points[before]).clamp(min=APART)
        inside = halves[before] + share.clamp(0, 1) * (halves[after] - halves[before])
        low = halves[0] + (values - points[0]).clamp(-0.5, 0)
        high = halves[-1] + (values - points[-1]).clamp(0, 0.5)
        found = torch.where(place == 0, low, torch.where(place == len(points), high, inside))
        # A number that lies on a half, or is rounded to it, is kept on its side.
        decided = (self.lowest + place).double()
        return found.clamp(decided - 0.499, decided + 0.499).to(logits.dtype)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Grades [...] int64 of values [...] or [..., 1], a tensor or an array."""
        logits = torch.as_tensor(logits)
        values = logits.squeeze(-1) if logits.dim() > 1 and logits.shape[-1] == 1 else logits
        return self.lowest + torch.searchsorted(self.cut_points.to(values.device), values.double().contiguous())

    def drawn(self) -> dict[str, torch.Tensor]:
        return {"cut point": self.cut_points}

    def to_dict(self) -> dict[str, Any]:
        return {"cut_points": [round(value, 9) for value in self.cut_points.tolist()], "lowest": self.lowest}
