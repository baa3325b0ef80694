"""Surrogates for several labels per example, or documents per query: from logits and labels, [..., N, L] each."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..losses.base import Evidence
from ..losses.layers import binary_margin
from ..losses.learned.labels import LabelCountNetwork, LabelMarginNetwork, SubsetMarginNetwork
from ..losses.learned.ranks import RankNetwork
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..metrics.counts import SEVERAL_LABELS, RatioMetric
from ..metrics.ranking import RankingMetric
from .base import Surrogate, output_tensor
from .config import SurrogateConfig

PULL = 0.01
"""The pull on the scale of logits: one of 0.1, as of classes, leaves no probabilities below a tenth."""


class SurrogateForMultilabel(Surrogate):
    """A learned loss for classification with several labels per example, or for ranking documents per query.

    Four architectures: `"counts"`, the soft form of metrics of counts per label (F1, precision, recall; micro, macro
    and weighted averages) or per example (`average="samples"`); `"subset"`, that of the share of examples of which all
    labels are right; `"margin"`, that of the share of right labels, which at its start is binary cross-entropy. These
    are monotone in every logit by construction. `"ranks"` is the soft form of a metric of rankings (nDCG, MAP, MRR),
    for which an example is a query, its labels say how relevant its documents are, and -100 stands for no document.

    Evidence: outputs [..., N, L, 1], logits; labels [..., N, L] int64, 0 or 1 (or more, of rankings); counts
    [..., N, L], False where the label was -100.

    Example:
        >>> loss = SurrogateForMultilabel(SurrogateConfig(task="multilabel"))
        >>> labels = torch.tensor([[1.0, 0.0, 1.0]])
        >>> loss(4 * labels - 2, labels) < loss(2 - 4 * labels, labels)
        tensor(True)
    """

    task = "multilabel"
    networks = (LabelMarginNetwork, SubsetMarginNetwork, LabelCountNetwork, RankNetwork)
    read_columns = ("label_logits",)
    scored = ("label_logits", "labels")
    original_loss = "binary_cross_entropy"
    scores_logits = True
    metric_options: ClassVar[dict[str, Any]] = SEVERAL_LABELS

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 2 or (isinstance(outputs, Mapping) and outputs.get("logits") is None):
            return False
        if output_tensor(outputs, "logits").shape != labels.shape:
            return False
        return bool((((labels >= 0) & (labels == labels.round())) | (labels == IGNORED_LABEL)).all())

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"label_logits": output_tensor(outputs, "logits").float(), "labels": labels.long()}

    def example(self) -> tuple[str, str]:
        return "torch.randn(32, 28)", "torch.randint(2, (32, 28)).float()"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        recorded = isinstance(outputs, Mapping) and outputs.get("label_logits") is not None
        logits = output_tensor(outputs, "label_logits" if recorded else "logits").float()
        if labels is None or logits.dim() < 2 or logits.shape != labels.shape:
            given = None if labels is None else list(labels.shape)
            raise ValueError(
                "A surrogate for several labels per example wants logits and labels of one shape, [..., N, L], but got "
                f"{list(logits.shape)} and {given}."
            )
        counts = labels != IGNORED_LABEL
        takes_grades = getattr(self.network, "takes_grades", False)
        wrong = counts & ((labels < 0) | (labels != labels.round()) | ((labels > 1) & (not takes_grades)))
        if wrong.any():
            wanted = "whole numbers, 0 or more," if takes_grades else "0 or 1 each,"
            raise ValueError(
                f"Several labels per example are {wanted} or -100 to be ignored, but there is {labels[wrong][0]}."
            )
        if not logits.isfinite().all():
            raise ValueError(
                f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite: the model has diverged. "
                "Lower the learning rate, clip gradients, or train in a wider precision."
            )
        return Evidence(logits[..., None], labels.long().masked_fill(~counts, 0), counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        return F.softplus(-binary_margin(evidence.outputs[..., 0], evidence.labels))

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForMultilabel":
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes.

        For metrics of counts per label or per example that is `"counts"` of the metric itself, for `subset_accuracy`
        `"subset"`, for those of rankings, as `ndcg`, `"ranks"`, for any other, such as a function, `"margin"`.
        """
        metric = load_metric(metric).informed(cls.metric_options)
        structure: dict[str, Any] = {"task": cls.task, "architecture": "margin", "scale_weight": PULL}
        if metric.name == "subset_accuracy":
            structure |= {"architecture": "subset"}
        elif isinstance(metric, RankingMetric):
            structure |= {"architecture": "ranks", "scores": {metric.name: metric.options}}
        elif cls.has_soft_metric(metric):
            structure |= {"architecture": "counts", "scores": {metric.name: metric.options}}
        return cls(SurrogateConfig(**structure | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        metric = metric.informed(cls.metric_options)
        if isinstance(metric, RatioMetric):
            return metric.average != "binary"
        return metric.name == "subset_accuracy" or isinstance(metric, RankingMetric)
