"""Losses for several labels per example: shares of right labels and of right examples, and counts per label, soft."""

from typing import ClassVar

import torch
import torch.nn.functional as F

from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline, binary_margin
from ..scale import checked_pull
from .counts import CountNetwork


class LabelMarginNetwork(SurrogateNetwork):
    """The mean over labels of softplus(-g(m)) + κ|z|: the share of right labels, made soft.

    The margin m of a label is its logit z where it holds, -z where it does not, and g an increasing spline that is
    learned. At its start this is binary cross-entropy with a pull on the scale of the logits.
    """

    architecture = "margin"
    tasks = ("multilabel",)
    count_dims = 2
    gradient_penalty = 0.03
    takes_grades: ClassVar[bool] = True
    """Whether labels may be more than 1, which is no other than 1 to it or, of rankings, more relevant."""

    def __init__(
        self, *, num_knots: int = 16, knot_range: float = 4.0, trust_region: bool = False, scale_weight: float = 0.1
    ):
        super().__init__()
        self.pull = checked_pull(scale_weight)
        self.spline = MonotoneSpline(num_knots, knot_range, trust_region=trust_region)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        margin = binary_margin(evidence.outputs[..., 0], evidence.labels)
        return self.of_margins(margin, evidence.counts) + self.pull * sizes(evidence)

    def of_margins(self, margin: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """The losses [..., N, L] of margins of that shape."""
        return self.curve(margin)

    def curve(self, margin: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.spline(margin))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)


class SubsetMarginNetwork(LabelMarginNetwork):
    """The share of examples of which all labels are right, made soft.

    With p the probability that all labels of an example are right, each its own, the loss is softplus(-g(log p/(1-p)))
    over the number of labels, which at its start is binary cross-entropy, too.
    """

    architecture = "subset"
    takes_grades = False

    def of_margins(self, margin: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        log_p = F.logsigmoid(margin).masked_fill(~counts, 0.0).sum(-1, keepdim=True).clamp(max=-1e-6)
        of_example = log_p - (-torch.expm1(log_p)).log()
        return (self.curve(of_example) / counts.sum(-1, keepdim=True).clamp(min=1)).expand_as(margin)


class LabelCountNetwork(CountNetwork):
    """A `ScoreMixture` of metrics of soft counts of each label, or of each example (`average="samples"`), plus κ|z|."""

    tasks = ("multilabel",)
    count_dims = 2
    takes_grades = False
    counts_absent = True  # of labels that no example of a batch has, each prediction is wrong all the same

    def forward(self, evidence: Evidence) -> torch.Tensor:
        scores = self.score(self.sums(evidence))
        if self.of_examples:
            counts = evidence.counts.any(-1)
            scores = (scores * counts).sum(-1) / counts.sum(-1).clamp(min=1)
        else:
            scores = scores * evidence.counts.flatten(-2).any(-1)  # of a group in which nothing counts it is 0
        return scores + self.pull * self.mean(sizes(evidence), evidence.counts)

    def sums(self, evidence: Evidence) -> torch.Tensor:
        """Soft counts [..., 3 L] of each group, or [..., N, 3 L] of each example."""
        soft = torch.sigmoid(self.spline(evidence.outputs[..., 0])) * evidence.counts
        right = evidence.labels * evidence.counts
        sums = torch.cat([soft * right, soft, right.to(soft)], dim=-1)
        return sums if self.of_examples else sums.sum(-2)

    def canonical(self, evidence: Evidence) -> Evidence:
        return evidence


def sizes(evidence: Evidence) -> torch.Tensor:
    """|z| [..., N, L] of the logits, with a gradient also at 0."""
    return (evidence.outputs[..., 0].square() + 1e-6).sqrt()
