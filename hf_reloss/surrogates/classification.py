"""Surrogates for one label per example: from logits [..., N, C] and class indices [..., N]."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import Evidence, Surrogate, counted, output_tensor
from .config import SurrogateConfig


class SurrogateForClassification(Surrogate):
    """A learned loss for classification.

    Two architectures:

    - `"margin"`: softplus(-g(m)) + κ‖z - z̄‖, with g a strictly increasing spline and m the margin of the label's logit
      over the log-sum-exp of the others: a prediction further on the right side never costs more, whatever was learned.
      The second term holds what metrics of decisions cannot see, the scale of the logits z, which a model could
      otherwise grow without end to lower its loss. At its start the spline is the identity, and the surrogate is
      cross-entropy with that pull. It is learned on predictions of one scale, that at which it rests at its start.
    - `"paper"`: the network of Huang et al. 2022 (Relational Surrogate Loss Learning) from p(label) to |·|. It is not
      monotone: check its alignment.

    Example:
        >>> loss = SurrogateForClassification(SurrogateConfig())
        >>> logits = torch.tensor([[4.0, 0.0, 0.0]])
        >>> loss(logits, torch.tensor([0])) < loss(logits, torch.tensor([1]))
        tensor(True)
    """

    task = "classification"
    original_loss = "cross_entropy"

    def __init__(self, config: SurrogateConfig):
        super().__init__(config)
        if config.architecture == "margin":
            if not 0 < config.scale_weight < 1:
                raise ValueError(f"scale_weight is a share between 0 and 1, got {config.scale_weight}.")
            self.spline = MonotoneSpline(config.num_knots, config.knot_range)
        elif config.architecture == "paper":
            # Sub-modules named as in the authors' checkpoints, which load as they are.
            width = config.hidden_size
            self.logits_fcs = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
            self.loss = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))
        else:
            raise ValueError(
                f"Unknown architecture {config.architecture!r} for {self.task}: choose 'margin' or 'paper'."
            )
        self.post_init()

    def forward(self, outputs: Any, labels: torch.Tensor | None = None, *, reduction: str = "mean") -> torch.Tensor:
        if labels is not None and labels.dim() != 1:
            raise ValueError(
                "A surrogate for classification is a loss for one label per example, labels [N], but got labels "
                f"{list(labels.shape)}: a model that labels tokens needs a surrogate for its own task."
            )
        return super().forward(outputs, labels, reduction=reduction)

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
                "The model puts out one logit, but a surrogate for classification wants two classes or more."
            )
        labels, counts = counted(labels, logits.shape[-1])
        logits = logits.float()
        if not logits.isfinite().all():
            raise ValueError(
                f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite: the model has diverged. "
                "Lower the learning rate, clip gradients, or train in a wider precision."
            )
        return Evidence(logits, labels, counts)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        if self.config.architecture == "paper":
            return self._network(evidence.outputs.softmax(-1).gather(-1, evidence.labels[..., None]).squeeze(-1))
        return self._network(self.margin(evidence)) + self.config.scale_weight * _scale(evidence.outputs)[..., 0]

    def margin(self, evidence: Evidence) -> torch.Tensor:
        """z_y - log Σ_{k≠y} exp(z_k), [..., N]: positive where the label has more than half of the probability."""
        index = evidence.labels[..., None]
        others = evidence.outputs.scatter(-1, index, -torch.inf).logsumexp(-1)
        return evidence.outputs.gather(-1, index).squeeze(-1) - others

    @property
    def gradient_penalty(self) -> float:
        return super().gradient_penalty if self.config.architecture == "paper" else 0.03

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor | float]:
        """`"margin"`: held to those of its start, where φ(m) = softplus(-m); in closed form.

        With φ the learned loss of the margin and u the unit vector along the centred logits, the gradient is
        φ'(m) ∇m + κ u, of which only φ' depends on the weights: nothing has to be differentiated twice.
        """
        if self.config.architecture == "paper":
            return super().gradient_norms(evidence)
        pull = self.config.scale_weight
        with torch.no_grad():
            index = evidence.labels[..., None]
            margin = self.margin(evidence)
            others = evidence.outputs.gather(-1, index) - margin[..., None]  # their log-sum-exp
            gradient = (evidence.outputs - others).clamp(max=0).exp().neg_().scatter_(-1, index, 1.0)  # ∇m
            centred = evidence.outputs - evidence.outputs.mean(-1, keepdim=True)
            along = (gradient * centred).sum(-1) / _scale(centred)[..., 0]
            square = gradient.square_().sum(-1)

        def norms(slope: torch.Tensor) -> torch.Tensor:
            return (slope.square() * square + 2 * pull * slope * along + pull**2).sqrt()

        slope = -torch.sigmoid(-self.spline(margin)) * self.spline.slope(margin)
        return norms(slope), norms(-torch.sigmoid(-margin))

    def canonical(self, evidence: Evidence) -> Evidence:
        """`"margin"`: logits of mean 0 and of one norm, that of a right prediction where the untrained surrogate rests.

        There the label's logit is ahead of the others, which are alike, by that a at which the derivative vanishes:
        sigmoid(log(C - 1) - a) = κ √((C - 1) / C).
        """
        if self.config.architecture == "paper":
            return evidence
        classes = evidence.outputs.shape[-1]
        spread = math.sqrt((classes - 1) / classes)  # the norm of centred logits (1, 0, ..., 0)
        pull = self.config.scale_weight * spread
        lead = math.log(classes - 1) + math.log((1 - pull) / pull)
        centred = evidence.outputs - evidence.outputs.mean(-1, keepdim=True)
        return evidence._replace(outputs=centred * (spread * lead / _scale(centred)))

    def _network(self, value: torch.Tensor) -> torch.Tensor:
        """Losses [...] of margins, or of probabilities, [...]."""
        if self.config.architecture == "paper":
            return self.loss(self.logits_fcs(value[..., None])).squeeze(-1).abs()
        return F.softplus(-self.spline(value))

    @torch.no_grad()
    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """What was learned: losses [n] at margins [n] (`"margin"`) or probabilities of the label [n] (`"paper"`)."""
        return self._network(points.to(self.device)).cpu()

    def original_losses(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(outputs.float().flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(labels.shape)


def _scale(logits: torch.Tensor) -> torch.Tensor:
    """The norm [..., 1] of centred logits [..., C], with a gradient also where they are all the same."""
    return ((logits - logits.mean(-1, keepdim=True)).square().sum(-1, keepdim=True) + 1e-6).sqrt()


class MonotoneSpline(nn.Module):
    """A strictly increasing smooth function of one variable, the identity at its start.

    Its slope is exp(θ_k) between the knots k and k+1, with smooth passages, so any values of the parameters give an
    increasing function; outside the knots it goes on straight.

    Args:
        intervals: how many slopes are learned.
        knot_range: the knots lie between -knot_range and knot_range.
    """

    def __init__(self, intervals: int, knot_range: float):
        super().__init__()
        if intervals < 3 or knot_range <= 0:
            raise ValueError(f"A spline wants 3 intervals or more and a range > 0, got {intervals} and {knot_range}.")
        self.log_slopes = nn.Parameter(torch.zeros(intervals))
        self.offset = nn.Parameter(torch.zeros(()))
        self.register_buffer("knots", torch.linspace(-knot_range, knot_range, intervals - 1))
        self.sharpness = (intervals - 2) / knot_range  # passages are half as wide as the intervals between the knots

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[...] to [...]."""
        slopes = self.log_slopes.exp()
        bends = F.softplus(self._passages(x)) @ (slopes.diff() / self.sharpness)
        return slopes[0] * x + bends + self.offset

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """The derivative [...] at [...], above 0."""
        slopes = self.log_slopes.exp()
        return slopes[0] + torch.sigmoid(self._passages(x)) @ slopes.diff()

    def _passages(self, x: torch.Tensor) -> torch.Tensor:
        """How far [..., knots] each x lies beyond each knot, in widths of a passage."""
        return (x * self.sharpness)[..., None] - self.knots * self.sharpness
