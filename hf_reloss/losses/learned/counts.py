"""Metrics of counts per class, such as F1, of soft counts."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from packaging.version import Version

from ...metrics import load_metric
from ...metrics.counts import CountMetric
from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline, ScoreMixture, class_margins, logit_scale
from ..scale import at_rest, checked_pull

GENERAL_SCORES: dict[str, dict[str, Any]] = {
    "recall": {"average": "micro"},  # which is accuracy
    "precision": {"average": "macro"},
    "f1": {"average": "macro"},
    "balanced_accuracy": {},
    "matthews_correlation": {},
}
"""What the surrogate of an unknown metric mixes."""


class CountNetwork(SurrogateNetwork):
    """A `ScoreMixture` of metrics of soft counts, plus κ‖z - z̄‖. The soft counts have a learned spline in them."""

    architecture = "counts"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    gradient_penalty = 0.03
    counts_absent: ClassVar[bool] = False
    """Whether predictions of classes of no label in the group take part."""

    def __init__(
        self,
        *,
        scores: Mapping[str, Mapping[str, Any]] | None = None,
        num_knots: int = 16,
        knot_range: float = 4.0,
        trust_region: bool = False,
        scale_weight: float = 0.1,
    ):
        super().__init__()
        self.pull = checked_pull(scale_weight)
        # Half of the probability stays half: with an offset, learning took soft hits to where all are small, in which
        # their ratios rank well, and a model that was trained on them lost all it had.
        self.spline = MonotoneSpline(num_knots, knot_range, anchored=True, trust_region=trust_region)
        # In the order of their names, in which a configuration is saved: the weights of the mixture go by it.
        self.metrics: list[CountMetric] = []
        for name, options in sorted((scores or {}).items()):
            metric = load_metric(name, **options)
            if not isinstance(metric, CountMetric):
                raise ValueError(f"scores are metrics of counts per class, as 'f1' is, but {metric.name!r} is not.")
            self.metrics.append(metric)
        if not self.metrics:
            raise ValueError(
                "The architecture 'counts' wants scores: the metrics whose soft forms it mixes, such as "
                "{'f1': {'average': 'macro'}}; SurrogateForClassification.for_metric chooses them."
            )
        of_examples = {getattr(metric, "average", "") == "samples" for metric in self.metrics}
        if len(of_examples) > 1:
            raise ValueError("scores are of examples (average='samples') or of labels, but these are of both.")
        (self.of_examples,) = of_examples
        self.mixture = ScoreMixture(len(self.metrics))

    def forward(self, evidence: Evidence) -> torch.Tensor:
        number = evidence.counts.sum(-1).clamp(min=1)
        pull = (logit_scale(evidence.outputs)[..., 0] * evidence.counts).sum(-1) / number
        return self.score(self.sums(evidence)) + self.pull * pull

    def sums(self, evidence: Evidence) -> torch.Tensor:
        """Soft counts [..., 3 C] of each group: right ones, predicted ones, and those of the labels, of each class."""
        counts = evidence.counts[..., None]
        soft = torch.sigmoid(self.spline(class_margins(evidence.outputs))) * counts
        right = F.one_hot(evidence.labels, soft.shape[-1]) * counts
        return torch.cat([(soft * right).sum(-2), soft.sum(-2), right.sum(-2)], dim=-1)

    def score(self, sums: torch.Tensor) -> torch.Tensor:
        """The loss [...] of soft counts, without what pulls the logits together."""
        hits, predicted, labels = sums.chunk(3, dim=-1)
        # A class of no label takes no part: it has no right ones that could become more.
        # Of a ratio to next to nothing the second derivatives have no bound.
        takes_part = torch.ones_like(labels, dtype=torch.bool) if self.counts_absent else labels > 0
        sums = torch.cat([hits, (predicted + 1e-9) * takes_part, labels], dim=-1)
        scores = []
        for metric in self.metrics:
            parts, weights = metric.parts(sums)
            defined = parts.isfinite()  # of one class alone, there is no recall beyond guessing
            parts = ((parts - metric.zero_point) / (1 - metric.zero_point)).clamp(min=0)
            scores.append((parts.masked_fill(~defined, 0.0), weights * defined))
        return self.mixture(scores)

    def curve(self, margin: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.spline(margin))

    def adopt(self, version: Version) -> None:
        """Of more than one score, 0.1 saved the weights in the order in which they were given, and lost that order."""
        if version >= Version("0.2.0") or len(self.metrics) < 2:
            return
        if {metric.name: metric for metric in self.metrics} != {
            name: load_metric(name, **options) for name, options in GENERAL_SCORES.items()
        }:
            raise ValueError(
                f"It was saved by hf_reloss {version}, which lost the order of its {len(self.metrics)} scores "
                f"({', '.join(metric.name for metric in self.metrics)}), and with it which weight belongs to which: "
                "learn it again."
            )
        given = list(GENERAL_SCORES)
        with torch.no_grad():
            self.mixture.weights.copy_(self.mixture.weights[[given.index(metric.name) for metric in self.metrics]])

    def learned(self) -> dict[str, str]:
        weights = self.mixture.weights.softmax(-1).tolist()
        named = zip((metric.name for metric in self.metrics), weights, strict=True)
        return {"scores": ", ".join(f"{name} {weight:.2f}" for name, weight in named)}

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)

    def canonical(self, evidence: Evidence) -> Evidence:
        return at_rest(evidence, self.pull)
