"""The loss of a margin over what a metric minds: of decisions that are not all equally wrong."""

import torch

from ...metrics.credits import MOST_CLASSES
from ..base import Evidence
from .margin import MarginNetwork


class CreditNetwork(MarginNetwork):
    """The loss of a margin of logits that are raised, before, by what deciding for each class would cost the label.

    That of `MarginNetwork`, of z + A[y] in place of the logits z: a class whose decision costs more has to be left
    further behind (softmax-margin: Gimpel and Smith 2010). The costs A are the metric's, in units of what a confusion
    costs on average. With none, at its start, this is the loss of architecture `"margin"`, the soft form of accuracy.

    Args:
        classes: C, up to 2,000; 0 where no costs are known yet.
        num_knots, knot_range, trust_region, scale_weight: as of `MarginNetwork`.

    Attributes:
        costs: A [C, C] float32, by label and decision, 0 for right ones; [0, 0] as long as none are known.

    Raises:
        ValueError: for a number of classes out of bounds, or logits of another number than there are costs for.
    """

    architecture = "credit"
    costs: torch.Tensor

    def __init__(
        self,
        *,
        classes: int = 0,
        num_knots: int = 16,
        knot_range: float = 4.0,
        trust_region: bool = False,
        scale_weight: float = 0.1,
    ):
        super().__init__(
            num_knots=num_knots, knot_range=knot_range, trust_region=trust_region, scale_weight=scale_weight
        )
        if not (isinstance(classes, int) and 0 <= classes <= MOST_CLASSES):
            raise ValueError(f"classes is a number up to {MOST_CLASSES:,}, but got {classes!r}.")
        self.register_buffer("costs", torch.zeros(classes, classes))

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return super().losses(self._raised(evidence))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return super().gradient_norms(self._raised(evidence))

    def _raised(self, evidence: Evidence) -> Evidence:
        known, classes = len(self.costs), evidence.outputs.shape[-1]
        if not known:
            return evidence
        if known != classes:
            raise ValueError(
                f"The surrogate has learned what confusions of {known} classes cost, but the model puts out {classes} "
                "logits: learn one for it."
            )
        return evidence._replace(outputs=evidence.outputs + self.costs[evidence.labels])

    def confusion_costs(self) -> torch.Tensor | None:
        return self.costs if len(self.costs) else None

    def learned(self) -> dict[str, str]:
        if not len(self.costs):
            return {}
        others = self.costs[~torch.eye(len(self.costs), dtype=torch.bool)]
        low, high = (float(others.quantile(share)) for share in (0.1, 0.9))  # of 16 million at most
        return {"costs": f"of a confusion, from {low:.2f} (a tenth is below) to {high:.2f} (a tenth is above)"}
