"""What a metric is: a number for a group of predictions.

Most metrics are additive: each prediction has a small vector of statistics, a group's statistics are their sum, and the
score is a function of that sum. Thousands of groups are then scored by one sum. Every other metric is called group by
group, with a progress bar, since that is what takes the time.
"""

import abc

import numpy as np
import torch
from tqdm.auto import tqdm

IGNORED_LABEL = -100
"""The label of a prediction that does not count, as everywhere in transformers."""


class Metric(abc.ABC):
    """A score of a group of predictions against their references.

    Attributes:
        name: the word that people use for it.
        higher_is_better: False for error rates.
    """

    name: str
    higher_is_better: bool = True

    @property
    def signature(self) -> str:
        """One line that fixes what is computed: the name and the options."""
        return self.name

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the metric sees of a model's outputs, taken once per prediction however many groups it is drawn into.

        Args:
            outputs: [n, ...], a model's raw outputs.

        Returns:
            [n, ...] decisions; the outputs themselves unless a metric says otherwise.
        """
        return outputs

    @abc.abstractmethod
    def score_groups(self, decisions: torch.Tensor, index: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Scores of m groups of N predictions, drawn from n.

        Args:
            decisions: [n, ...], from `decide`.
            index: [m, N] int64, which predictions make up each group.
            references: [m, N, ...] labels, group by group; -100 does not count.

        Returns:
            [m] float64.
        """

    def compute(self, predictions, references) -> float:
        """The score of one group.

        Args:
            predictions: [N, ...] outputs, or decisions where the metric takes them: a tensor, an array or a list.
            references: [N, ...] labels, likewise; -100 does not count.
        """
        decisions, references = self.decide(torch.as_tensor(predictions)), torch.as_tensor(references)
        if len(decisions) != len(references):
            raise ValueError(f"{self.name}: {len(decisions)} predictions, but {len(references)} references.")
        return float(self.score_groups(decisions, torch.arange(len(decisions))[None], references[None])[0])


class AdditiveMetric(Metric):
    """A metric whose score is a function of summed statistics."""

    @abc.abstractmethod
    def statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Statistics [N, K] float64 of N predictions; a row of zeros where the label is -100."""

    @abc.abstractmethod
    def score(self, sums: torch.Tensor) -> torch.Tensor:
        """Scores [...] of summed statistics [..., K]."""

    def score_groups(self, decisions: torch.Tensor, index: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        statistics = self.statistics(decisions[index].flatten(0, 1), references.flatten(0, 1))
        return self.score(statistics.unflatten(0, index.shape).sum(1))


class GroupwiseMetric(Metric):
    """A metric that can only be called, one group at a time."""

    @abc.abstractmethod
    def score_one(self, decisions: np.ndarray, references: np.ndarray) -> float:
        """The score of one group whose ignored predictions have been taken out."""

    def score_groups(self, decisions: torch.Tensor, index: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        # NumPy has no bfloat16.
        decisions = (decisions.float() if decisions.is_floating_point() else decisions).cpu()
        scores = []
        groups = list(zip(index.cpu(), references.cpu(), strict=True))
        for chosen, labels in tqdm(groups, desc=f"scoring {self.name}", disable=len(groups) < 64, leave=False):
            # Where labels are sequences, -100 marks positions inside a prediction: the metric's own business.
            counts = labels != IGNORED_LABEL if labels.dim() == 1 else slice(None)
            scores.append(float(self.score_one(decisions[chosen][counts].numpy(), labels[counts].numpy())))
        return torch.tensor(scores, dtype=torch.float64)
