"""Surrogates for one label per example: from logits [..., N, C] and class indices [..., N]."""

import math
from collections.abc import Mapping
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list

from ..losses.base import Evidence
from ..losses.learned.counts import GENERAL_SCORES, CountNetwork
from ..losses.learned.credit import CreditNetwork
from ..losses.learned.margin import MarginNetwork
from ..losses.learned.paper_classification import PaperClassificationNetwork
from ..losses.learned.sets import SetNetwork
from ..metrics import Metric, load_metric
from ..metrics.counts import CountMetric
from ..metrics.credits import MOST_CLASSES, confusion_costs, judges_decisions, minds_confusions
from .base import Surrogate, class_indices, output_tensor
from .config import SurrogateConfig
from .regression import is_one_number

ASKED_ABOUT, ASKED_FOR = 5_000, 1.0
"""Of how many predictions a metric is asked, at most, what confusions cost, and for how many seconds at a time."""

PULL_WITH_COSTS = 0.01
"""The pull on the scale of logits where confusions have costs: one of 0.1 takes from kappa (docs/promise.md)."""

RULED_OUT = 20.0
"""By so much below all others is the logit of a class taken that a model has ruled out with -inf."""


class SurrogateForClassification(Surrogate):
    """A learned loss for classification.

    Five architectures, beside the hand-made losses (`hf_reloss.losses`):

    - `"margin"`, the soft form of accuracy: the mean over the group of softplus(-g(m)) + κ‖z - z̄‖, with g a strictly
      increasing spline and m the margin of the label's logit over the log-sum-exp of the others: a prediction further
      on the right side never costs more, whatever was learned. The second term holds what metrics of decisions cannot
      see, the scale of the logits z, which a model could otherwise grow without end to lower its loss. At its start the
      spline is the identity, and the surrogate is cross-entropy with that pull.
    - `"counts"`, the soft form of metrics of counts per class, such as F1: each class's margin goes through such a
      spline and a sigmoid, at the start softmax probabilities; these are added up over the group to soft counts of
      right ones, predicted ones and labels; and of these the metrics in `scores` are taken, of which the logarithms are
      mixed as is learned (`ScoreMixture`). To this comes the same pull. Its value is that of a group, the batch.
    - `"credit"`: `"margin"`, of logits that are raised, before, by what deciding for each class costs the metric; these
      costs are asked of it where predictions are, when learning begins. For kappa, for functions that nobody else
      knows, for what a business loses by each mistake.
    - `"paper"`: the network of Huang et al. 2022 (Relational Surrogate Loss Learning) from p(label) to |·|. It is not
      monotone: check its alignment.
    - `"set"`: a network of sets, for the objective `"approximation"` of Grabocka et al. 2019. Nor is it monotone.

    The first three are learned on predictions of one scale, that at which a right prediction rests at the start of the
    first.

    Example:
        >>> loss = SurrogateForClassification(SurrogateConfig())
        >>> logits = torch.tensor([[4.0, 0.0, 0.0]])
        >>> loss(logits, torch.tensor([0])) < loss(logits, torch.tensor([1]))
        tensor(True)
    """

    task = "classification"
    read_columns = ("logits",)
    scored = ("logits", "labels")
    original_loss = "cross_entropy"
    scores_logits = True
    networks = (MarginNetwork, CountNetwork, CreditNetwork, PaperClassificationNetwork, SetNetwork)

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if isinstance(outputs, Mapping) and outputs.get("logits") is None:
            return False
        one_number = labels.is_floating_point() and is_one_number(output_tensor(outputs, "logits"), labels)
        return labels.dim() == 1 and not one_number

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"logits": output_tensor(outputs, "logits").float(), "labels": labels}

    def forward(self, outputs: Any, labels: torch.Tensor | None = None, *, reduction: str = "mean") -> torch.Tensor:
        if torch.is_tensor(labels) and labels.dim() != 1:
            raise ValueError(
                "A surrogate for classification is a loss for one label per example, labels [N], but got labels "
                f"{list(labels.shape)}: a model that labels tokens needs a surrogate for its own task."
            )
        return super().forward(outputs, labels, reduction=reduction)

    def begin(self, predictions: datasets.Dataset, metric: Metric) -> None:
        if not isinstance(self.network, CreditNetwork):
            return
        some = range(0, len(predictions), math.ceil(len(predictions) / ASKED_ABOUT))
        columns = predictions.select(some).with_format("torch")[:]
        # How much is asked is a question of time, so that processes may come to different ones.
        (costs,) = broadcast_object_list([_costs(metric, columns["logits"].double(), columns["labels"].long())])
        if costs is not None:
            self.network.costs = costs.to(self.network.costs)
            self.config.loss_options = {"classes": len(costs)}

    def example(self) -> tuple[str, str]:
        return "torch.randn(32, 10)", "torch.randint(10, (32,))"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        logits = output_tensor(outputs, "logits")
        if labels is None or logits.shape[:-1] != labels.shape:
            given = None if labels is None else list(labels.shape)
            raise ValueError(
                "A surrogate for classification scores one label per example: it wants logits [..., N, C] and labels "
                f"[..., N], but got {list(logits.shape)} and {given}."
            )
        if logits.shape[-1] < 2:
            raise ValueError(
                "The model puts out one logit, but a surrogate for classification wants two classes or more. If it is "
                "a model of numbers, its labels are to be floats, which config.num_labels = 1 makes them."
            )
        labels, counts = class_indices(labels, logits.shape[-1])
        logits = logits.float()
        ruled_out = logits.isneginf()
        if ruled_out.any():
            lowest = logits.detach().masked_fill(ruled_out, torch.inf).amin(-1, keepdim=True)
            logits = torch.where(ruled_out, lowest - RULED_OUT, logits)
        if not logits.isfinite().all():
            raise ValueError(
                f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite: the model has diverged. "
                "Lower the learning rate, clip gradients, or train in a wider precision."
            )
        return Evidence(logits, labels, counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        losses = F.cross_entropy(evidence.outputs.flatten(0, -2), evidence.labels.flatten(), reduction="none")
        return losses.view(evidence.labels.shape)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForClassification":
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes: if it can be, its soft form.

        For accuracy that is the architecture `"margin"`; for metrics of counts per class (F1, Matthews correlation)
        `"counts"` of the metric itself; for other ones of decisions, and functions, `"credit"`; for those of scores
        (ROC AUC) `"counts"` of a mixture, whose weights are to be learned.
        """
        metric = load_metric(metric)
        if metric.name in ("accuracy", "top_k_accuracy"):
            return cls(SurrogateConfig(**options))
        if minds_confusions(metric):
            of_costs: dict[str, Any] = {"architecture": "credit", "scale_weight": PULL_WITH_COSTS}
            return cls(SurrogateConfig(**of_costs | options))
        scores = {metric.name: metric.options} if isinstance(metric, CountMetric) else GENERAL_SCORES
        return cls(SurrogateConfig(**{"architecture": "counts", "scores": scores} | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return metric.name in ("accuracy", "top_k_accuracy") or isinstance(metric, CountMetric)


def _costs(metric: Metric, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """What confusions cost, [C, C] in units of their mean; None for a metric that does not say so."""
    if logits.shape[-1] > MOST_CLASSES or not judges_decisions(metric, logits, labels):
        return None
    try:
        return confusion_costs(metric, labels, logits.softmax(-1), ASKED_FOR)
    except Exception:  # of somebody's own function, of decisions that it does not expect
        return None
