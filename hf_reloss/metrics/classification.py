"""Metrics of one label per prediction."""

import torch

from .base import IGNORED_LABEL, AdditiveMetric


class Accuracy(AdditiveMetric):
    """Share of the predictions that are right, in [0, 1]; nan for a group without labels.

    Predictions are logits [..., C] or class indices [...] (int64), references class indices; a tie between logits goes
    to the first class, as in `argmax`. Equal to `sklearn.metrics.accuracy_score`.
    """

    name = "accuracy"

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(-1) if outputs.is_floating_point() else outputs

    def statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """[N, 2]: whether it is right, whether it counts."""
        counts = references != IGNORED_LABEL
        return torch.stack([(self.decide(predictions) == references) & counts, counts], dim=-1).double()

    def score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]
