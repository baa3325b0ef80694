"""What losses of embeddings share: pytorch-metric-learning, and parameters in distances that a controller changes."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ...metrics.base import need
from ..base import Evidence
from .base import AdjustableLoss

FARTHEST = 2.0
"""The largest distance between normalised embeddings."""


class MetricLearningLoss(AdjustableLoss):
    """A loss of a group of embeddings [N, D] with classes [N], as pytorch-metric-learning computes it.

    Its P options are distances between normalised embeddings, which lie between 0 and 2. A `LossController` changes the
    logits of their shares of 2, a buffer [P]: so they stay in between, and a step of 0.1 changes a small one by a
    tenth, and none by more than 0.05. The controller sees of each the mean distance of two examples of one class, and
    the mean distance to the nearest example of another.

    Raises:
        ImportError: if pytorch-metric-learning is not installed.
        ValueError: for an option that is not between 0 and 2.
    """

    tasks = ("embeddings",)
    options: ClassVar[dict[str, float]] = {}
    library_class: ClassVar[str]
    """The class in `pytorch_metric_learning.losses`, which takes the options by their names."""
    share_logits: torch.Tensor

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._loss = getattr(need("pytorch_metric_learning.losses", "metric-learning"), self.library_class)
        given = {name: getattr(self, name) for name in self.options}
        wrong = {name: value for name, value in given.items() if not 0 < value < FARTHEST}
        if wrong:
            raise ValueError(
                f"The options of the loss {self.architecture!r} are distances between normalised embeddings, above 0 "
                f"and below {FARTHEST:g}, but got {wrong}."
            )
        self.register_buffer("share_logits", (torch.tensor(list(given.values())) / FARTHEST).logit())

    def forward(self, evidence: Evidence) -> torch.Tensor:
        if evidence.counts.dim() > 1:
            return torch.stack([self(Evidence(*group)) for group in zip(*evidence, strict=True)])
        loss = self._loss(**dict(zip(self.options, self.distances().tolist(), strict=True)))
        return loss(evidence.outputs[evidence.counts], evidence.labels[evidence.counts])

    def distances(self) -> torch.Tensor:
        """The options as they are by now, [P]."""
        return FARTHEST * self.share_logits.sigmoid()

    def values(self) -> torch.Tensor:
        return self.share_logits.clone()

    def adjust(self, changes: torch.Tensor) -> None:
        self.share_logits += changes.to(self.share_logits)

    def statistics(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        of_same, of_nearest = pair_distances(outputs, labels)
        return torch.stack([of_same, of_nearest])[:, None].expand(2, len(self.share_logits)).cpu()

    def doubts(self, labels: torch.Tensor) -> str:
        alone = int((labels.unique(return_counts=True)[1] == 1).sum())
        return f"{alone} of its {len(labels)} examples are the only ones of their class." if alone else ""


def pair_distances(embeddings: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean distance of two examples of one class, and the mean distance to the nearest example of another.

    Args:
        embeddings: [n, D], which are normalised here.
        labels: [n] int64.

    Raises:
        ValueError: if no two examples are of one class, or all are.
    """
    sizes = labels.unique(return_counts=True)[1]
    if len(sizes) < 2 or sizes.max() < 2:
        raise ValueError(
            "Losses of embeddings compare examples of one class and of different ones, but the validation data has "
            f"{len(labels)} of {len(sizes)} classes: take all examples of some classes, two or more."
        )
    embeddings = F.normalize(embeddings.float(), dim=-1)
    distances = torch.cdist(embeddings, embeddings).fill_diagonal_(0.0)
    same = labels[:, None] == labels
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return (distances * same).sum() / (sizes * (sizes - 1)).sum(), nearest.mean()
