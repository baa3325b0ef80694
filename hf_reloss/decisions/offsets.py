"""Offsets of classes: for every metric of the confusion matrix the best decision is an argmax of shifted logits.

Koyejo et al. 2014, Consistent Binary Classification with Generalized Performance Metrics; Narasimhan et al. 2015,
Consistent Multiclass Algorithms for Complex Performance Measures, arXiv:1501.01287.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..metrics import AdditiveMetric, Metric
from ..metrics.counts import CountMetric
from .base import DecisionRule

SOFTNESS, PULL = 0.5, 3e-3
"""The temperature of soft decisions, that of calibrated probabilities being 1, and the weight of the offsets' mean
square. Both keep offsets from following single examples."""

SHARES = torch.linspace(-1, 2, 25).tolist()
"""Shares of the classes' log frequencies that are tried, for a metric of which soft decisions have no score."""

MOST_CLASSES = 128
"""Of so many, statistics of all pairs of a label and a decision are laid out."""


class ClassOffsets(DecisionRule):
    """A number for each class that is added to its logit.

    In the bias of a model's last layer they are there for every pipeline and server, see `fold`.

    Args:
        offsets: [C].
    """

    word = "offsets"

    def __init__(self, offsets: Sequence[float]):
        self.offsets = torch.tensor(list(offsets), dtype=torch.float32)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + self.offsets.to(logits)

    def to_dict(self) -> dict[str, Any]:
        return {"offsets": [round(value, 6) for value in self.offsets.tolist()]}

    @classmethod
    def fit(cls, logits: torch.Tensor, labels: torch.Tensor, metric: Metric) -> "ClassOffsets":
        """Those with the best metric of soft decisions, with a pull towards 0.

        Of a metric that is not additive, the best multiple of the log frequencies of the classes.

        Args:
            logits: [n, C] float, of examples that the model has not been trained on.
            labels: [n] int64, all of which count.
            metric: of class decisions.
        """
        logits = logits.double()
        soft_score = _soft_score(metric, labels, logits.shape[-1])
        if soft_score is None:
            offsets = _multiple_of_frequencies(logits, labels, metric)
        else:
            temperature = calibrating_temperature(logits, labels)
            offsets = temperature * _best(logits / temperature, soft_score)
        return cls((offsets - offsets.mean()).tolist())


def calibrating_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """What logits [n, C] are divided by for the probabilities of labels [n] to be the likeliest (Guo et al. 2017)."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(logits.double() / log_temperature.clamp(-3, 3).exp(), labels)
        found.backward()
        return found

    optimizer.step(loss)
    return float(log_temperature.detach().clamp(-3, 3).exp())


def _best(logits: torch.Tensor, soft_score: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    offsets = torch.zeros(logits.shape[-1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([offsets], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        pull = PULL * (offsets - offsets.mean()).square().mean()
        found = pull - soft_score(((logits + offsets) / SOFTNESS).softmax(-1))
        found.backward()
        return found

    optimizer.step(loss)
    found = offsets.detach()
    return found if found.isfinite().all() else torch.zeros_like(found)


def _soft_score(metric: Metric, labels: torch.Tensor, classes: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The score, higher being better, of decisions as probabilities [n, C]; None for a metric that has none."""
    if not isinstance(metric, AdditiveMetric) or (classes > MOST_CLASSES and not isinstance(metric, CountMetric)):
        return None
    due = F.one_hot(labels, classes).double()
    sign = 1.0 if metric.higher_is_better else -1.0
    if isinstance(metric, CountMetric):
        return lambda decided: sign * metric.score(torch.cat([(due * decided).sum(0), decided.sum(0), due.sum(0)]))
    every = torch.arange(classes)
    pairs = torch.cartesian_prod(every, every)  # of a label and a decision
    statistics = metric.statistics(pairs[:, 1], pairs[:, 0])
    return lambda decided: sign * metric.score((due.T @ decided).flatten() @ statistics)


def _multiple_of_frequencies(logits: torch.Tensor, labels: torch.Tensor, metric: Metric) -> torch.Tensor:
    """The multiple of the classes' log frequencies by which logits are lowered for the best metric."""
    counts = torch.bincount(labels, minlength=logits.shape[-1]).double() + 1
    log_frequencies = (counts / counts.sum()).log()
    sign = 1.0 if metric.higher_is_better else -1.0
    found = [
        (sign * float(metric.compute((logits - share * log_frequencies).argmax(-1), labels)), -abs(share), share)
        for share in SHARES
    ]
    return -max(found)[2] * log_frequencies
