"""The loss of a margin: accuracy, made soft."""

import torch
import torch.nn.functional as F

from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline, label_margin, logit_scale
from ..scale import at_rest, checked_pull


class MarginNetwork(SurrogateNetwork):
    """softplus(-g(m)) + κ‖z - z̄‖, with g an increasing spline that is learned."""

    architecture = "margin"
    tasks = ("classification",)
    gradient_penalty = 0.03

    def __init__(
        self, *, num_knots: int = 16, knot_range: float = 4.0, trust_region: bool = False, scale_weight: float = 0.1
    ):
        super().__init__()
        self.pull = checked_pull(scale_weight)
        self.spline = MonotoneSpline(num_knots, knot_range, trust_region=trust_region)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        of_margin = self.curve(label_margin(evidence.outputs, evidence.labels))
        return of_margin + self.pull * logit_scale(evidence.outputs)[..., 0]

    def curve(self, margin: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.spline(margin))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        """Held to those of its start, where φ(m) = softplus(-m); in closed form.

        With φ the learned loss of the margin and u the unit vector along the centred logits, the gradient is
        φ'(m) ∇m + κ u, of which only φ' depends on the weights: nothing has to be differentiated twice.
        """
        with torch.no_grad():
            index = evidence.labels[..., None]
            margin = label_margin(evidence.outputs, evidence.labels)
            others = evidence.outputs.gather(-1, index) - margin[..., None]  # their log-sum-exp
            gradient = (evidence.outputs - others).clamp(max=0).exp().neg_().scatter_(-1, index, 1.0)  # ∇m
            centred = evidence.outputs - evidence.outputs.mean(-1, keepdim=True)
            along = (gradient * centred).sum(-1) / logit_scale(centred)[..., 0]
            across = (gradient.square_().sum(-1) - along.square()).clamp(min=0.0)

        def norms(slope: torch.Tensor) -> torch.Tensor:
            # Of two classes the gradient lies along the logits, and at rest it vanishes: the root is kept off 0.
            return ((slope * along + self.pull).square() + slope.square() * across + 1e-12).sqrt()

        slope = -torch.sigmoid(-self.spline(margin)) * self.spline.slope(margin)
        return norms(slope), norms(-torch.sigmoid(-margin))

    def canonical(self, evidence: Evidence) -> Evidence:
        return at_rest(evidence, self.pull)
