"""The class-correlation loss of adaptive loss alignment (Huang et al. 2019, arXiv:1905.05895, equation 8)."""

import math
from typing import Any, ClassVar

import torch

from ..base import Evidence
from .base import AdjustableLoss

MOST_CLASSES = 10_000
"""Of them the correlations take 400 MB."""


class ClassCorrelation(AdjustableLoss):
    """-σ(Σ_j Φ_yj log p_j) of an example of class y, with Φ [C, C] symmetric, the identity at its start.

    Φ is a buffer, `correlations`, whose pairs i ≤ j a `LossController` changes. An action moves Φ_ii by the
    controller's step, and Φ_ij by a (C - 1)-th of it: all others of a class together weigh as much as itself. What is
    less probable than `floor` / C counts as if it were that: without a floor, a class that Φ is against could be made
    ever less probable, and the sigmoid be flat before the example's own class is learned. Neither is in the paper.
    """

    architecture = "class_correlation"
    options: ClassVar[dict[str, float]] = {"classes": 2, "floor": 0.1}
    classes: int
    floor: float
    correlations: torch.Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        if not 2 <= self.classes <= MOST_CLASSES:
            raise ValueError(
                f"The class-correlation loss is for 2 to {MOST_CLASSES:,} classes, but got {self.classes}."
            )
        self.register_buffer("correlations", torch.eye(self.classes))

    def losses(self, evidence: Evidence) -> torch.Tensor:
        if evidence.outputs.shape[-1] != self.classes:
            raise ValueError(
                f"This class-correlation loss is for {self.classes} classes, but the model puts out "
                f"{evidence.outputs.shape[-1]} logits: make it with classes={evidence.outputs.shape[-1]}."
            )
        floor = math.log(self.floor / self.classes) if self.floor else -math.inf
        of_label = self.correlations[evidence.labels]
        return -torch.sigmoid((of_label * evidence.outputs.log_softmax(-1).clamp(min=floor)).sum(-1))

    def values(self) -> torch.Tensor:
        rows, columns, scale = self._pairs()
        return self.correlations[rows, columns] * scale

    def adjust(self, changes: torch.Tensor) -> None:
        rows, columns, scale = self._pairs()
        self.correlations[rows, columns] += changes.to(scale) / scale
        self.correlations[columns, rows] = self.correlations[rows, columns]

    def statistics(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """C_ij and C_ji of each pair i ≤ j; the rows of classes without an example are the mean of the others."""
        found = confusions(outputs, labels)
        missing = found.isnan().all(1)
        found[missing] = found[~missing].mean(0)
        rows, columns = torch.triu_indices(*found.shape)
        return torch.stack([found[rows, columns], found[columns, rows]])

    def doubts(self, labels: torch.Tensor) -> str:
        missing = (torch.bincount(labels, minlength=self.classes) == 0).nonzero().flatten().tolist()
        if not missing:
            return ""
        return (
            f"It has no example of the classes {missing}: in the controller's states they are the mean of the others."
        )

    def _pairs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows and columns of the pairs i ≤ j, [C (C + 1) / 2], and by what an action is divided for them."""
        device = self.correlations.device
        rows, columns = torch.triu_indices(self.classes, self.classes, device=device)
        return rows, columns, torch.where(rows == columns, 1.0, max(1.0, self.classes - 1.0))


def confusions(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """C_ij [C, C], the mean of -log p of class j over the examples of class i (section 4.1); NaN where there is none.

    Args:
        logits: [n, C] of validation examples.
        labels: [n] int64.
    """
    losses, classes = -logits.float().log_softmax(-1), logits.shape[-1]
    sums = losses.new_zeros(classes, classes).index_add_(0, labels, losses)
    return sums / torch.bincount(labels, minlength=classes)[:, None]
