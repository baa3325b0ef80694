"""Soft hits of joints in heatmaps: PCK and OKS, made soft."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...metrics import load_metric
from ...metrics.keypoints import COCO_SIGMAS, OKS, PCK
from ..base import Evidence, SurrogateNetwork
from ..heatmaps import LITTLE, squared_distances, squared_errors
from ..layers import MonotoneSpline

DEFAULT_SCORES: dict[str, dict[str, Any]] = {"pck": {"alpha": 0.2}}
"""The metric whose soft form the surrogate of an unknown one is."""


class HitNetwork(SurrogateNetwork):
    """softplus(-g(m)) + κ E, with m the margin of a joint's hits and g an increasing spline: PCK or OKS, made soft.

    Softmax p of β times the heatmap, β = 10, is where the joint may be: it reads heatmaps whose peak is 1, as those are
    that were trained on squared errors. Where a hit would be is a distribution, too: each pixel's share w of the credit
    k(d / r) of all pixels, with d its distance from the true point and r that up to which the metric calls the joint
    right, or of OKS that at which similarity is exp(-1/2). Credit falls from 1, at the start for OKS as the similarity
    itself, for PCK as a smooth step within r; how fast it falls in each stretch of distances is learned. Of their
    divergence D = Σ w log(w / p) the margin is m = -D - log(1 - exp(-D)); at the start g is the identity, and the loss
    of a margin is D.

    What costs least in expectation, where the true point is uncertain, is the expected credit of each pixel: the
    heatmap's highest place is then the one of which the metric expects most. (-log Σ p k, the expected credit's, costs
    least where p is sharper than what is known, and its highest place need not be the best.)

    E is half the sum of squared errors against the Gaussian that heatmaps usually are trained on. It holds what no
    metric of the best place can see: level and scale of the heatmaps, and a peak's form, from which parts of pixels are
    read.

    It never costs more if the nearer of two pixels gets the larger one of their two values, whatever was learned.
    """

    architecture = "hits"
    tasks = ("keypoints",)
    count_dims = 2
    gradient_penalty = 0.03
    sharpness = 10.0
    """β."""
    least_radius = 0.7
    """In pixels of the heatmap: between pixels there is nothing nearer."""
    reach = 3.0
    """In radii: beyond, credit falls no more."""
    stretches = 24
    """Of distances, in which the fall of credit is learned."""
    steepness = 8.0
    """Of the smooth step: its logit falls by so much in one radius."""
    middle = 0.75
    """Of the smooth step, in radii: what is barely a hit is easily none."""

    def __init__(
        self,
        *,
        scores: Mapping[str, Mapping[str, Any]] | None = None,
        sigma: float | None = None,
        anchor: float = 2.0,
        num_knots: int = 16,
        knot_range: float = 4.0,
        trust_region: bool = False,
    ):
        super().__init__()
        name, options = next(iter((scores or DEFAULT_SCORES).items()))
        metric = load_metric(name, **options)
        if not isinstance(metric, PCK | OKS):
            raise ValueError(f"'hits' wants as scores one of 'pck' and 'oks' with its options, but got {name!r}.")
        self.metric, self.sigma, self.anchor = metric, sigma, anchor
        self.log_falls = nn.Parameter(torch.zeros(self.stretches))
        self.spline = MonotoneSpline(num_knots, knot_range, trust_region=trust_region)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        points = evidence.labels[..., :2]
        size = evidence.outputs.shape[-2:]
        radii = self.radii(evidence.labels, evidence.counts).clamp(min=self.least_radius)
        credit = self.credit(squared_distances(points, *size).sqrt() / radii[..., None, None]).flatten(-2)
        wanted = credit / credit.sum(-1, keepdim=True).clamp(min=LITTLE)  # little for joints that are far outside
        log_probability = (self.sharpness * evidence.outputs).flatten(-2).log_softmax(-1)
        score = (wanted * log_probability + torch.special.entr(wanted)).sum(-1).clamp(max=-1e-6)
        losses = self.curve(score - torch.log(-torch.expm1(score)))
        if not self.anchor:
            return losses
        return losses + self.anchor / 2 * math.prod(size) * squared_errors(evidence.outputs, points, self.sigma)

    def radii(self, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """The distances [..., N, K] that count as one; 0 or below where the metric knows none.

        Args:
            labels, counts: as in the evidence.
        """
        if isinstance(self.metric, OKS):
            if labels.shape[-1] != 4:
                raise ValueError(
                    "Soft OKS wants labels [..., N, K, 4], with the area of the object, in square pixels of the "
                    f"heatmap, behind x, y and visibility, but got {list(labels.shape)}."
                )
            sigmas = labels.new_tensor(COCO_SIGMAS if self.metric.sigmas is None else self.metric.sigmas)
            if len(sigmas) != labels.shape[-2]:
                raise ValueError(
                    f"Soft OKS has {len(sigmas)} sigmas, but there are {labels.shape[-2]} joints: pass one each."
                )
            return 2 * sigmas * labels[..., 3].clamp(min=0).sqrt()
        lengths = self.metric.lengths(labels[..., :2].flatten(0, -3), counts.flatten(0, -2)).view(counts.shape[:-1])
        return (self.metric.alpha * lengths.nan_to_num(nan=0.0, neginf=0.0))[..., None].expand(counts.shape)

    def credit(self, distances: torch.Tensor) -> torch.Tensor:
        """k [...] of distances [...] in radii: 1 at 0, straight between its knots."""
        knots = torch.linspace(0, self.reach, self.stretches + 1, device=distances.device)
        smooth_step = F.softplus(self.steepness * (knots - self.middle))
        costs = knots.square() / 2 if isinstance(self.metric, OKS) else smooth_step
        values = torch.cat([knots[:1], (costs.diff() * self.log_falls.exp()).cumsum(0)]).neg().exp()
        place = (distances * (self.stretches / self.reach)).clamp(max=self.stretches - 1e-4)
        before = place.long()
        return torch.lerp(values[before], values[before + 1], place - before)

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """The loss of margins of hits."""
        return F.softplus(-self.spline(points))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)

    def canonical(self, evidence: Evidence) -> Evidence:
        """Heatmaps with a peak of 1."""
        peaks = evidence.outputs.amax((-2, -1), keepdim=True)
        return evidence._replace(outputs=evidence.outputs / peaks.where(peaks > 1e-3, 1.0))
