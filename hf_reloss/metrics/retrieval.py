"""Metrics of embeddings: whether the nearest ones are of the same class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .base import IGNORED_LABEL, CollectionMetric

MOST_COSINES = 2**24
"""How many are in memory at a time."""


@dataclass(frozen=True)
class RecallAtK(CollectionMetric):
    """Recall@k (Jégou et al. 2011, as used for metric learning by Oh Song et al. 2016, arXiv:1511.06452), in [0, 1].

    Each example is a query against all others of its group: the share of those with one of their class among the k
    nearest, by the Euclidean distance of normalised embeddings, which orders them as the cosine does. An example that
    is the only one of its class is no query, as in pytorch-metric-learning's `precision_at_1`, which this is for k = 1;
    nan where there is no other. Of examples that are equally near, those of other classes come first, so that a model
    that maps all to one point does not score.

    Predictions are embeddings [N, D], references class indices [N]; one of -100 does not count, nor is it found.

    Args:
        k: how many of the nearest are looked at, 1 or more.
    """

    name: ClassVar[str] = "recall_at_k"
    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"{self.name}: k is how many of the nearest are looked at, 1 or more, but got {self.k}.")

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if predictions.dim() != 2 or references.dim() != 1 or references.is_floating_point():
            raise ValueError(
                f"{self.name} wants embeddings [N, D] and class indices [N], but got {list(predictions.shape)} and "
                f"{list(references.shape)} ({references.dtype}). Of scores [N, D] of ranked "
                "documents with their relevance [N, D], the metric is 'ranked_recall_at_k'."
            )
        predictions = predictions.to(torch.promote_types(predictions.dtype, torch.float32))
        if not predictions.isfinite().all():
            raise ValueError(
                f"{self.name} cannot compare embeddings that are not finite, of which there are "
                f"{int((~predictions.isfinite()).any(1).sum())}: the model has diverged."
            )
        return predictions, references

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        predictions, (groups, size) = F.normalize(predictions, dim=-1), index.shape
        at_a_time = max(1, MOST_COSINES // max(1, size * size))
        sums = predictions.new_zeros(groups, 2, dtype=torch.float64)
        for first in range(0, groups, at_a_time):
            part = index[first : first + at_a_time].to(predictions.device)
            for found in self._found(predictions[part], references[part]):
                sums[first : first + at_a_time] += found.sum(1)
        return self.score(sums)

    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        predictions, references = self.read(predictions, references)
        return torch.cat([found[0] for found in self._found(F.normalize(predictions, dim=-1)[None], references[None])])

    def score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]

    def _found(self, embeddings: torch.Tensor, labels: torch.Tensor) -> Iterator[torch.Tensor]:
        """Whether each example [m, R, 2] of m groups [m, N, D] is a hit and a query, some rows R at a time."""
        groups, size = labels.shape
        rows = max(1, MOST_COSINES // max(1, groups * size))
        for start in range(0, size, rows):
            yield torch.stack(self._hits(embeddings, labels, slice(start, start + rows)), dim=-1).double()

    def _hits(self, embeddings: torch.Tensor, labels: torch.Tensor, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Which examples [m, R] in some rows of m groups [m, N, D] are hits, and which of them are queries."""
        cosines = embeddings[:, rows] @ embeddings.transpose(-1, -2)
        same = labels[:, rows, None] == labels[:, None, :]
        others = ~same & (labels != IGNORED_LABEL)[:, None, :]
        same.diagonal(rows.start, -2, -1).fill_(False)  # no example finds itself
        query = same.any(-1) & (labels[:, rows] != IGNORED_LABEL)
        nearest = cosines.masked_fill(~same, -torch.inf).amax(-1, keepdim=True)
        return query & (((cosines >= nearest) & others).sum(-1) < self.k), query
