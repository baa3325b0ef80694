"""Metrics of rankings: whether what is relevant to a query stands above what is not."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import IGNORED_LABEL, AdditiveMetric


@dataclass(frozen=True)
class RankingMetric(AdditiveMetric):
    """A mean over queries of how well their documents are ranked, in [0, 1].

    Predictions are scores [N, D] of D documents for each of N queries, references how relevant these are, [N, D]: 0 for
    not at all, any number above that for relevant, -100 where there is no document. A query without a relevant document
    does not count; nan where that is all of them. Statistics: [N, 2], the score and 1.

    Args:
        k: only the first k places count; None for all.
    """

    k: int | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"{self.name}: k is how many of the first places count, 1 or more, but got {self.k}.")

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if predictions.dim() != 2 or predictions.shape != references.shape:
            raise ValueError(
                f"{self.name} wants scores [N, D] of the documents of each query, and how relevant they are, [N, D] "
                f"with -100 where there is none, but got {list(predictions.shape)} and {list(references.shape)}."
            )
        counts = references != IGNORED_LABEL
        if predictions[counts].isnan().any():
            raise ValueError(f"{self.name} cannot rank by scores that are nan: the model has diverged.")
        if (references[counts] < 0).any():
            raise ValueError(f"{self.name}: documents are relevant by 0 or more, but got {references[counts].min()}.")
        return predictions.double(), references.double()

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        exists = references != IGNORED_LABEL
        # In descending order; what does not exist is put behind what does.
        descending, order = predictions.masked_fill(~exists, -torch.inf).neg().sort(-1)
        relevance = references.clamp(min=0).gather(-1, order)
        judged = (relevance > 0).any(-1)
        above = torch.searchsorted(descending, descending, right=False)
        at_least = torch.searchsorted(descending, descending, right=True)
        score = self._of_order(relevance, above, at_least).nan_to_num() * judged
        return torch.stack([score, judged.double()], dim=-1)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]

    def first(self, places: torch.Tensor) -> torch.Tensor:
        """Which places, counted from 1, count."""
        return torch.ones_like(places, dtype=torch.bool) if self.k is None else places <= self.k

    @abc.abstractmethod
    def _of_order(self, relevance: torch.Tensor, above: torch.Tensor, at_least: torch.Tensor) -> torch.Tensor:
        """The scores [N] of queries.

        Args:
            relevance: [N, D] float64, in descending order of the scores, 0 where there is no document.
            above, at_least: [N, D], how many documents score more than each of them, and as much or more.
        """


@dataclass(frozen=True)
class Ndcg(RankingMetric):
    """Normalised discounted cumulative gain (Järvelin and Kekäläinen 2002), as `sklearn.metrics.ndcg_score`.

    A document's gain is its relevance, its discount 1 / log2(1 + place), the mean over their places where documents
    score alike. Arguments as of `RankingMetric`.
    """

    name: ClassVar[str] = "ndcg"

    def _of_order(self, relevance: torch.Tensor, above: torch.Tensor, at_least: torch.Tensor) -> torch.Tensor:
        places = torch.arange(1, relevance.shape[-1] + 1, device=relevance.device)
        discounts = self.first(places) / (1 + places).double().log2()
        summed = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])
        discounted = relevance * (summed[at_least] - summed[above]) / (at_least - above)
        ideal = relevance.sort(-1, descending=True).values @ discounts
        return discounted.sum(-1) / ideal


@dataclass(frozen=True)
class MeanAveragePrecision(RankingMetric):
    """Mean over queries of the average precision at their relevant documents.

    Without `k` it is `sklearn.metrics.label_ranking_average_precision_score`: of documents that score alike, each has
    the last of their places. With it, the precisions at the first k places are added up, and divided by the number of
    relevant documents or k, whichever is less. Arguments as of `RankingMetric`.
    """

    name: ClassVar[str] = "map"

    def _of_order(self, relevance: torch.Tensor, above: torch.Tensor, at_least: torch.Tensor) -> torch.Tensor:
        relevant = (relevance > 0).double()
        precision = relevant.cumsum(-1).gather(-1, at_least - 1) / at_least
        number = relevant.sum(-1)
        return (precision * relevant * self.first(at_least)).sum(-1) / (
            number if self.k is None else number.clamp(max=self.k)
        )


@dataclass(frozen=True)
class MeanReciprocalRank(RankingMetric):
    """Mean over queries of 1 / place of the first relevant document; 0 where that is beyond the first k.

    Of documents that score alike, those that are not relevant come first, so that a model that scores all alike does
    not look good. Arguments as of `RankingMetric`.
    """

    name: ClassVar[str] = "mrr"

    def _of_order(self, relevance: torch.Tensor, above: torch.Tensor, at_least: torch.Tensor) -> torch.Tensor:
        relevant = relevance > 0
        best = relevant.double().argmax(-1, keepdim=True)  # the first of them
        alike = (above == above.gather(-1, best)) & ~relevant
        place = above.gather(-1, best)[:, 0] + alike.sum(-1) + 1
        return self.first(place) / place.double()


@dataclass(frozen=True)
class PlacesMetric(RankingMetric):
    """A mean over queries of how many relevant documents are in the first k places, as a share of something.

    A document that scores as others do counts by the share of their places that are among the first k, the mean over
    all orders of them. Arguments as of `RankingMetric`.
    """

    k: int | None = 10

    def __post_init__(self) -> None:
        if self.k is None or self.k < 1:
            raise ValueError(f"{self.name}: k is how many of the first places count, 1 or more, but got {self.k}.")

    def _of_order(self, relevance: torch.Tensor, above: torch.Tensor, at_least: torch.Tensor) -> torch.Tensor:
        relevant = (relevance > 0).double()
        inside = (at_least.clamp(max=self.k) - above.clamp(max=self.k)).double() / (at_least - above)
        return (relevant * inside).sum(-1) / self._number(relevant.sum(-1))

    @abc.abstractmethod
    def _number(self, relevant: torch.Tensor) -> torch.Tensor:
        """Of how many it is the share, where this many documents [N] are relevant."""


@dataclass(frozen=True)
class PrecisionAtK(PlacesMetric):
    """Precision at k: the share of the first k places with a relevant document, also where there are fewer documents.

    Mean over the queries that have a relevant document. Arguments as of `PlacesMetric`.
    """

    name: ClassVar[str] = "precision_at_k"

    def _number(self, relevant: torch.Tensor) -> torch.Tensor:
        return torch.full_like(relevant, self.k or 0)


@dataclass(frozen=True)
class RankedRecallAtK(PlacesMetric):
    """Recall at k of ranked documents: the share of a query's relevant documents that is in the first k places.

    `recall_at_k` is that of embeddings. Arguments as of `PlacesMetric`.
    """

    name: ClassVar[str] = "ranked_recall_at_k"

    def _number(self, relevant: torch.Tensor) -> torch.Tensor:
        return relevant
